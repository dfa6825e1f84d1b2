//! ADD: allocate, plan, wire. Whatever fails undoes what it made, and nothing that was there before; the original error is
//! what the runtime reads.

use crate::attachments::{self, Attachments, Part};
use crate::bandwidth::shaper;
use crate::bridge::ensure_bridge;
use crate::config::{self, Dialect, PluginConfig};
use crate::host_ports::HostPorts;
use crate::plan::{self, PodPlan};
use crate::plugin::{failed, kernel_error};
use crate::pod::{configure_pod, create_veth};
use crate::ptp;
use crate::ready::{await_carrier, await_reception};
use crate::teardown::Remains;
use cni_spec::{AddResult, CniError, Code, Interface, NetworkConfig, Sandbox};
use kernel::Mac;
use kernel::netlink::{Link, LinkChange, Netlink};
use kernel::netns::Netns;
use nix::errno::Errno;
use std::net::IpAddr;

/// Attaches the sandbox.
pub(crate) fn add(dialect: Dialect, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
    let parsed = PluginConfig::parse(dialect, config, &sandbox.args)?;
    let netns = open_sandbox(sandbox)?;
    let (ports, attachments) = (config::host_ports(dialect, config)?, Attachments::of(config)?);
    let allocated = parsed.ipam.add(sandbox, config, &|id, addresses| {
        let (bridge, ports, attachments) = (parsed.bridge.as_deref(), ports.as_ref(), &attachments);
        Remains { id, network: &config.name, netns: None, bridge, addresses, ports, attachments }.remove()
    })?;
    let reserved: Vec<IpAddr> = allocated.ips.iter().map(|ip| ip.address.ip()).collect();
    let made = plan::pod(&parsed, &config.name, &sandbox.id, &allocated).and_then(|mut plan| {
        plan.ports.pod = attachments::pod(&sandbox.args);
        let wired = wire(&plan, sandbox, ports.as_ref(), &attachments, &netns)?;
        let mut result = plan.result(wired.bridge_mac, &sandbox.netns);
        result.interfaces.extend(wired.queue);
        Ok(result)
    });
    if made.is_err() {
        // The reason of the failure is the answer; a failure to undo it would only hide it, and DEL will meet it again.
        let _ = parsed.ipam.undo(sandbox, config, &reserved);
    }
    made
}

/// Opens the sandbox's namespace; one that does not exist is the runtime's error 3.
pub(crate) fn open_sandbox(sandbox: &Sandbox) -> Result<Netns, CniError> {
    let netns =
        Netns::open(&sandbox.netns).map_err(|error| CniError::new(Code::UnknownContainer, error.to_string()))?;
    let own = Netns::current().map_err(kernel_error)?;
    if netns.id() == own.id() {
        return Err(CniError::new(
            Code::InvalidNetns,
            format!("CNI_NETNS {} is the host's own network namespace: a pod needs its own", sandbox.netns.display()),
        ));
    }
    Ok(netns)
}

/// What the result tells and only the kernel knew.
struct Wired {
    /// none: there is no bridge
    bridge_mac: Option<Mac>,
    /// the device in which what the pod sends queues, if that is limited
    queue: Option<Interface>,
}

/// Carries the plan out. Once the pair is made, a failure removes it again.
fn wire(
    plan: &PodPlan,
    sandbox: &Sandbox,
    ports: Option<&HostPorts>,
    attachments: &Attachments,
    netns: &Netns,
) -> Result<Wired, CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(netns).map_err(kernel_error)?;
    let bridge = plan.bridge.as_ref().map(|bridge| ensure_bridge(&mut host, bridge)).transpose()?;
    let bridge_index = bridge.as_ref().map(|bridge| bridge.index);
    let attached = create_veth(&plan.veth, netns, &mut host, &mut pod, bridge_index).and_then(|()| {
        let network = &plan.ports.network;
        // Limits and guard first: the pod's end is not up yet, so that not a packet escapes them.
        let in_course = |error| failed(format!("setting up {} in {}", plan.veth.pod, sandbox.netns.display()))(error);
        let done = limit(plan, sandbox, network, &mut host)
            .map_err(&in_course)
            .and_then(|queue| attachments.publish(Part::Interface, &plan.record(sandbox)).map(|()| queue))
            .and_then(|queue| {
                let configured = configure(plan, netns, &mut host, &mut pod, bridge.as_ref());
                configured.map(|()| queue).map_err(&in_course)
            })
            // Last, so that nobody is led to a pod that cannot be reached yet.
            .and_then(|queue| ports.map_or(Ok(()), |ports| ports.publish(&plan.ports)).map(|()| queue));
        if done.is_err() {
            let (id, network) = (&sandbox.id, plan.ports.network.as_str());
            let addresses: Vec<IpAddr> = plan.ips.iter().map(|ip| ip.address.ip()).collect();
            let bridge = bridge.as_ref().map(|bridge| bridge.name.as_str());
            let _ = Remains { id, network, netns: None, bridge, addresses: &addresses, ports, attachments }.remove();
        }
        done
    });
    match (attached, bridge) {
        (Ok(queue), bridge) => Ok(Wired { bridge_mac: bridge.and_then(|bridge| bridge.mac), queue }),
        (Err(error), Some(bridge)) => Err(match host.link_by_index(bridge.index) {
            Ok(None) => CniError::new(
                Code::TryAgain,
                format!("bridge {} was deleted in the meantime: try again ({})", bridge.name, error.msg),
            ),
            _ => error,
        }),
        (Err(error), None) => Err(error),
    }
}

/// Limits the bandwidth, if there are limits; the device that this takes.
fn limit(plan: &PodPlan, sandbox: &Sandbox, network: &str, host: &mut Netlink) -> kernel::Result<Option<Interface>> {
    if plan.limits.is_empty() {
        return Ok(None);
    }
    match host.link(&plan.veth.host)? {
        Some(end) => shaper::limit(host, network, &sandbox.id, &end, &plan.limits),
        None => Err(kernel::Error::new(format!("looking up {}, which was just made", plan.veth.host), Errno::ENODEV)),
    }
}

/// What follows once the pair is there, until packets come through.
fn configure(
    plan: &PodPlan,
    netns: &Netns,
    host: &mut Netlink,
    pod: &mut Netlink,
    bridge: Option<&Link>,
) -> kernel::Result<()> {
    configure_pod(plan, netns, pod)?;
    if plan.veth.isolated
        && let Some(link) = host.link(&plan.veth.host)?
    {
        host.set_link(link.index, &LinkChange { isolated: Some(true), ..LinkChange::default() })?;
    }
    let addresses = || plan.ips.iter().map(|ip| ip.address.ip());
    match bridge {
        // The host speaks to a reused address at once, instead of to whoever had it before until an old entry expires. The
        // entry is no permanent one: other plugins that take over this node know nothing of it, and hand its address to
        // another pod.
        Some(bridge) => addresses().try_for_each(|ip| host.introduce_neighbour(bridge.index, ip, plan.veth.mac))?,
        None => ptp::connect(plan, host, pod)?,
    }
    if plan.veth.down {
        return Ok(());
    }
    await_carrier(host, &plan.veth.host)?;
    if let Some(bridge) = bridge.filter(|bridge| !bridge.running) {
        await_carrier(host, &bridge.name)?;
    }
    // IPv4 sends and receives on a device that is up. IPv6 goes by its link watch and gets its local route later.
    if addresses().any(|ip| ip.is_ipv6()) {
        await_carrier(pod, &plan.veth.pod)?;
    }
    addresses().try_for_each(|ip| await_reception(pod, ip))
}
