//! CHECK: compares the kernel with what ADD returned, and names every difference.

use crate::add::open_sandbox;
use crate::attachments::{Attached, Attachments};
use crate::bandwidth::shaper;
use crate::config::{Dialect, Gateway, PluginConfig};
use crate::host_ports::{HostPorts, Record};
use crate::plugin::kernel_error;
use crate::tuning::settings;
use crate::{attachment, plan, ptp};
use cni_spec::{AddResult, CniError, Code, Interface, IpAssignment, NetworkConfig, Sandbox};
use ipnetwork::IpNetwork;
use kernel::netlink::{Link, LinkKind, Netlink, RouteEntry};
use std::net::IpAddr;

/// The main routing table (RT_TABLE_MAIN), where a route goes that names none.
const MAIN_TABLE: u32 = 254;

/// Fails with all differences between `prevResult` and the kernel in one message.
pub(crate) fn check(dialect: Dialect, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
    let parsed = PluginConfig::parse(dialect, config, &sandbox.args)?;
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK needs a prevResult, the result of ADD"));
    };
    let netns = open_sandbox(sandbox)?;
    let mut inspection = Inspection::new(sandbox, &parsed, previous);
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;
    inspection.inspect(&mut host, &mut pod).map_err(kernel_error)?;
    // In the other dialect limits are checked by the plugin that set them.
    if dialect == Dialect::FlannelRs
        && let Some(end) = host.link(&inspection.host_end).map_err(kernel_error)?
    {
        let found = shaper::differences(&mut host, &sandbox.id, &end, &parsed.limits).map_err(kernel_error)?;
        inspection.differences.extend(found);
    }
    let addresses: Vec<IpAddr> = inspection.ips.iter().map(|ip| ip.address.ip()).collect();
    if let Err(error) = parsed.ipam.check(sandbox, config, &addresses) {
        inspection.differences.push(error.msg);
    }
    if inspection.ours {
        let wanted = inspection.recorded(config, sandbox, addresses);
        inspection.differences.extend(Attachments::of(config)?.differences(&wanted)?);
    }
    let sysctls = settings::for_interface(&parsed.sysctls, &sandbox.id.ifname);
    if let Some(ports) = &parsed.ports {
        let addresses: Vec<_> = inspection.ips.iter().map(|ip| ip.address).collect();
        let record = Record::of(&config.name, &sandbox.id, ports.forwards(&addresses)?);
        inspection.differences.extend(HostPorts::recorded_in(&ports.directory).differences(&record)?);
    }
    inspection.differences.extend(settings::differences_in(&netns, &sysctls).map_err(kernel_error)?);
    verdict(inspection.differences)
}

/// What CHECK answers: nothing, or all differences and what can be done about them.
pub(crate) fn verdict(differences: Vec<String>) -> Result<(), CniError> {
    if differences.is_empty() {
        return Ok(());
    }
    let details = "CHECK repairs nothing: undo the change, or let the runtime replace the pod. What is missing in \
        nftables comes back with the next ADD of the same kind, or at once where flanneld-rs runs";
    Err(CniError { details: details.into(), ..CniError::new(Code::CheckFailed, differences.join("; ")) })
}

/// What must be, and what is not so.
struct Inspection<'a> {
    parsed: &'a PluginConfig,
    previous: &'a AddResult,
    ifname: &'a str,
    /// the pod's end according to the result
    interface: Option<&'a Interface>,
    /// the addresses on it; others belong to other plugins of the chain
    ips: Vec<&'a IpAssignment>,
    /// the host end
    host_end: String,
    /// its MTU according to the result; a later plugin may have given the pod's end another one
    host_mtu: Option<u32>,
    /// wired by us; the reference plugin names host ends at random and sets no neighbour entries
    ours: bool,
    differences: Vec<String>,
}

impl<'a> Inspection<'a> {
    fn new(sandbox: &'a Sandbox, parsed: &'a PluginConfig, previous: &'a AddResult) -> Self {
        let ifname = sandbox.id.ifname.as_str();
        let is_pod_end = |interface: &Interface| !interface.sandbox.is_empty() && interface.name == ifname;
        let is_here = |ip: &&IpAssignment| previous.interface_of(ip).is_none_or(is_pod_end);
        let ours = attachment::host_veth(&sandbox.id);
        let on_host =
            |interface: &&Interface| interface.sandbox.is_empty() && Some(&interface.name) != parsed.bridge.as_ref();
        let listed = previous.interfaces.iter().find(on_host);
        let host_end = listed.map_or(&ours, |interface| &interface.name).clone();
        Inspection {
            parsed,
            previous,
            ifname,
            interface: previous.interfaces.iter().find(|interface| is_pod_end(interface)),
            ips: previous.ips.iter().filter(is_here).collect(),
            ours: host_end == ours,
            host_end,
            host_mtu: listed.and_then(|interface| interface.mtu),
            differences: Vec::new(),
        }
    }

    /// What is on record of it.
    fn recorded(&self, config: &NetworkConfig, sandbox: &Sandbox, addresses: Vec<IpAddr>) -> Attached {
        let hardware_address = self.parsed.guarded.then(|| self.interface.map(|interface| interface.mac.clone()));
        let own = |networks: &Vec<IpNetwork>| plan::own_networks(networks, self.ips.iter().map(|ip| ip.address));
        Attached {
            masquerade: self.parsed.masquerade.as_ref().map(own),
            hardware_address: hardware_address.flatten(),
            ..Attached::new(&config.name, sandbox, addresses)
        }
    }

    fn differs(&mut self, difference: String) {
        self.differences.push(difference);
    }

    fn inspect(&mut self, host: &mut Netlink, pod: &mut Netlink) -> kernel::Result<()> {
        let bridge = self.parsed.bridge.as_ref().map(|name| host.link(name)).transpose()?.flatten();
        match (&bridge, &self.parsed.bridge) {
            (Some(bridge), _) => self.inspect_bridge(bridge, host)?,
            (None, Some(name)) => self.differs(format!("bridge {name} is missing")),
            (None, None) => {
                let missing = ptp::check(host, &self.host_end, &self.ips)?;
                self.differences.extend(missing);
            }
        }
        let pod_end = pod.link(self.ifname)?;
        match host.link(&self.host_end)? {
            Some(link) => self.inspect_host_end(&link, bridge.as_ref(), pod_end.as_ref()),
            None => self.differs(format!("host interface {} is missing", self.host_end)),
        }
        match &pod_end {
            Some(link) => self.inspect_pod_end(link, pod)?,
            None => self.differs(format!("interface {} is missing in the sandbox", self.ifname)),
        }
        bridge.map_or(Ok(()), |bridge| self.inspect_neighbours(&bridge, host))
    }

    fn inspect_bridge(&mut self, bridge: &Link, host: &mut Netlink) -> kernel::Result<()> {
        let name = &bridge.name;
        if bridge.kind != LinkKind::Bridge {
            self.differs(format!("{name} is no bridge"));
        }
        if !bridge.up {
            self.differs(format!("bridge {name} is down"));
        }
        if self.parsed.promiscuous && !bridge.promiscuous {
            self.differs(format!("bridge {name} is not in promiscuous mode"));
        }
        if self.parsed.gateway == Gateway::None {
            return Ok(());
        }
        let present = host.addresses_of(bridge.index)?;
        let gateways: Vec<IpAddr> = self.ips.iter().filter_map(|ip| ip.gateway).collect();
        for gateway in gateways.iter().filter(|gateway| !present.iter().any(|address| address.ip() == **gateway)) {
            self.differs(format!("bridge {name} lacks the gateway address {gateway}"));
        }
        Ok(())
    }

    fn inspect_host_end(&mut self, link: &Link, bridge: Option<&Link>, pod_end: Option<&Link>) {
        let name = &link.name;
        if !link.up {
            self.differs(format!("host interface {name} is down"));
        }
        // Numbers are unique in their namespace only: the pair must agree in both directions.
        let strange = |pod_end: &&Link| link.peer != Some(pod_end.index) || pod_end.peer != Some(link.index);
        if let Some(pod_end) = pod_end.filter(strange) {
            let text = "is CNI_NETNS the pod's namespace?";
            self.differs(format!("host interface {name} is not the other end of {}: {text}", pod_end.name));
        }
        if let Some(bridge) = bridge.filter(|bridge| link.master != Some(bridge.index)) {
            self.differs(format!("host interface {name} is not attached to bridge {}", bridge.name));
        }
        // The reference plugin has it off by default.
        if self.ours && link.hairpin.is_some_and(|hairpin| hairpin != self.parsed.hairpin) {
            let wanted = if self.parsed.hairpin { "on" } else { "off" };
            self.differs(format!("host interface {name} should have hairpin mode {wanted}"));
        }
        if self.parsed.isolated && link.isolated == Some(false) {
            self.differs(format!("host interface {name} is not isolated"));
        }
        self.inspect_mtu(&format!("host interface {name}"), link.mtu, self.host_mtu);
    }

    /// Results before 1.1.0 do not tell the MTU: then it is that of the configuration.
    fn inspect_mtu(&mut self, what: &str, mtu: u32, listed: Option<u32>) {
        if let Some(wanted) = listed.or(self.parsed.mtu).filter(|wanted| *wanted != mtu) {
            self.differs(format!("{what} has MTU {mtu} instead of {wanted}"));
        }
    }

    fn inspect_pod_end(&mut self, link: &Link, pod: &mut Netlink) -> kernel::Result<()> {
        let name = format!("interface {} in the sandbox", link.name);
        match self.interface {
            None => self.differs(format!("prevResult lists no interface {} in a sandbox", self.ifname)),
            Some(listed) => {
                let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
                if !listed.mac.is_empty() && !listed.mac.eq_ignore_ascii_case(&mac) {
                    self.differs(format!("{name} has the address {mac} instead of {}", listed.mac));
                }
            }
        }
        if link.kind != LinkKind::Veth {
            self.differs(format!("{name} is no veth"));
        }
        if link.up == self.parsed.down {
            self.differs(format!("{name} is {}", if link.up { "up" } else { "down" }));
        }
        self.inspect_mtu(&name, link.mtu, self.interface.and_then(|interface| interface.mtu));
        let present = pod.addresses_of(link.index)?;
        let wanted: Vec<_> = self.ips.iter().map(|ip| ip.address).collect();
        for address in wanted.iter().filter(|address| !present.contains(address)) {
            self.differs(format!("{name} lacks the address {address}"));
        }
        let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        for address in present.iter().filter(|address| !link_local(address.ip()) && !wanted.contains(address)) {
            self.differs(format!("{name} has the foreign address {address}"));
        }
        self.inspect_routes(link, &pod.routes()?);
        Ok(())
    }

    fn inspect_routes(&mut self, link: &Link, routes: &[RouteEntry]) {
        for wanted in &self.previous.routes {
            let is_it = |route: &RouteEntry| {
                route.dst == wanted.dst
                    && route.table == wanted.table.unwrap_or(MAIN_TABLE)
                    && wanted.priority.is_none_or(|priority| route.metric == Some(priority))
                    // A second interface with the same route left it to the first, which has the same gateway.
                    && if wanted.gw.is_some() { route.via == wanted.gw } else { route.dev == Some(link.index) }
            };
            if !routes.iter().any(is_it) {
                let via = wanted.gw.map(|via| format!(" via {via}")).unwrap_or_default();
                self.differs(format!("the sandbox lacks the route to {}{via}", wanted.dst));
            }
        }
    }

    /// A neighbour entry of the host that leads a pod's address somewhere else is what makes a pod unreachable from its
    /// node.
    fn inspect_neighbours(&mut self, bridge: &Link, host: &mut Netlink) -> kernel::Result<()> {
        let Some(wanted) = self.interface.map(|interface| &interface.mac).filter(|mac| !mac.is_empty()) else {
            return Ok(());
        };
        let neighbours = host.neighbours(Some(bridge.index))?;
        let addresses: Vec<IpAddr> = self.ips.iter().map(|ip| ip.address.ip()).collect();
        for ip in addresses {
            let entry = neighbours.iter().find(|neighbour| neighbour.ip == ip);
            match entry.and_then(|neighbour| neighbour.mac).map(|mac| mac.to_string()) {
                Some(mac) if mac.eq_ignore_ascii_case(wanted) => {}
                Some(mac) => self
                    .differs(format!("the host's neighbour entry for {ip} on {} is {mac}, not {wanted}", bridge.name)),
                // The kernel forgets what it has not used for long, and asks again.
                None => {}
            }
        }
        Ok(())
    }
}
