//! ADD: allocate, plan, wire. Whatever fails after the allocation is undone by the same teardown as DEL, and the original
//! error is what the runtime reads.

use crate::bridge::kernel_error;
use crate::config::{Dialect, PluginConfig, StaleAddress};
use crate::plan::{self, BridgePlan, PodPlan};
use crate::teardown::Remains;
use cni_spec::{AddResult, CniError, Code, NetworkConfig, Sandbox};
use ipam::host_local;
use ipnetwork::IpNetwork;
use kernel::netlink::{Link, LinkChange, LinkKind, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, sysctl};
use nix::errno::Errno;

/// What a person reads in `ip link` of a bridge that we made.
const BRIDGE_ALIAS: &str = "cni-plugin";

/// Attaches the sandbox.
pub(crate) fn add(dialect: Dialect, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
    let parsed = PluginConfig::parse(dialect, config, &sandbox.args)?;
    let netns = open_sandbox(sandbox)?;
    let allocated = match &parsed.ipam {
        Some(ipam) => host_local::add(ipam, &config.name, &sandbox.id)?,
        None => AddResult::default(),
    };
    // From here on there is something to undo.
    let addresses: Vec<IpNetwork> = allocated.ips.iter().map(|ip| ip.address).collect();
    let made = plan::pod(&parsed, &config.name, &sandbox.id, &allocated)
        .and_then(|plan| wire(&plan, &netns).map(|bridge_mac| plan.result(bridge_mac, &sandbox.netns, allocated)));
    if made.is_err() {
        // The reason of the failure is the answer; what the teardown finds wrong besides would only hide it. The sandbox
        // itself is left alone: an interface that was there before is not ours.
        let addresses: Vec<_> = addresses.iter().map(|address| address.ip()).collect();
        let remains = Remains { id: &sandbox.id, netns: None, bridge: &parsed.bridge, addresses: &addresses };
        let released = remains.remove().and_then(|()| match &parsed.ipam {
            Some(ipam) => host_local::del(&ipam.data_dir, &config.name, &sandbox.id),
            None => Ok(()),
        });
        drop(released);
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

/// Carries the plan out and returns the bridge's address.
fn wire(plan: &PodPlan, netns: &Netns) -> Result<Mac, CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(netns).map_err(kernel_error)?;
    let bridge = ensure_bridge(&mut host, &plan.bridge)?;
    create_veth(plan, netns, &mut host, &mut pod, bridge.index)?;
    configure_pod(plan, netns, &mut pod)?;
    // The host speaks to a reused address at once, instead of to whoever had it before until an old entry expires.
    for ip in &plan.ips {
        host.set_neighbour(bridge.index, ip.address.ip(), plan.veth.mac).map_err(kernel_error)?;
    }
    Ok(bridge.mac.unwrap_or(plan.bridge.mac))
}

fn create_veth(
    plan: &PodPlan,
    netns: &Netns,
    host: &mut Netlink,
    pod: &mut Netlink,
    bridge: u32,
) -> Result<(), CniError> {
    let veth = &plan.veth;
    let spec = VethSpec {
        name: &veth.host,
        alias: &veth.alias,
        mac: Some(veth.host_mac),
        mtu: veth.mtu,
        master: Some(bridge),
        hairpin: veth.hairpin,
        up: true,
        peer_name: &veth.pod,
        peer_mac: Some(veth.mac),
        peer_netns: netns,
    };
    match host.create_veth(&spec) {
        Err(error) if error.errno == Errno::EEXIST => {
            if pod.link(&veth.pod).map_err(kernel_error)?.is_some() {
                return Err(CniError::new(
                    Code::Kernel,
                    format!(
                        "{} exists already in the sandbox: delete it, or attach under another CNI_IFNAME",
                        veth.pod
                    ),
                ));
            }
            // The name follows from this very attachment, which had no address until now: a leftover of a crash.
            host.delete_link(&veth.host).map_err(kernel_error)?;
            host.create_veth(&spec).map_err(kernel_error)
        }
        made => made.map_err(kernel_error),
    }
}

fn configure_pod(plan: &PodPlan, netns: &Netns, pod: &mut Netlink) -> Result<(), CniError> {
    if plan.ips.iter().any(|ip| ip.address.is_ipv6()) {
        // Runtimes switch IPv6 off in new namespaces; an interface that is given an IPv6 address wants it.
        let enabled = netns.enter().and_then(|_inside| {
            sysctl::set("net/ipv6/conf/lo/disable_ipv6", "0")?;
            sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", plan.veth.pod), "0")
        });
        enabled.map_err(kernel_error)?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    if let Some(loopback) = pod.link("lo").map_err(kernel_error)?.filter(|loopback| !loopback.up) {
        pod.set_link(loopback.index, &up).map_err(kernel_error)?;
    }
    let link = find(pod, &plan.veth.pod)?;
    for ip in &plan.ips {
        pod.add_address(link.index, ip.address).map_err(kernel_error)?;
    }
    pod.set_link(link.index, &up).map_err(kernel_error)?;
    for route in &plan.routes {
        let spec = RouteSpec {
            dst: route.dst,
            via: route.gw,
            dev: Some(link.index),
            mtu: route.mtu,
            advmss: route.advmss,
            metric: route.priority,
            table: route.table,
            scope: route.scope,
            ..RouteSpec::default()
        };
        pod.add_route(&spec).map_err(kernel_error)?;
    }
    Ok(())
}

/// The bridge of the plan: made if it is not there, up, with its gateway addresses and an address that stays.
fn ensure_bridge(host: &mut Netlink, plan: &BridgePlan) -> Result<Link, CniError> {
    let bridge = match host.link(&plan.name).map_err(kernel_error)? {
        Some(bridge) => bridge,
        None => {
            match host.create_bridge(&plan.name, plan.mac, plan.mtu, BRIDGE_ALIAS) {
                // Another ADD made it in the meantime.
                Err(error) if error.errno == Errno::EEXIST => {}
                made => made.map_err(kernel_error)?,
            }
            // Router advertisements from a pod must not reconfigure the node. Without IPv6 there is no such file.
            let _ = sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", plan.name), "0");
            find(host, &plan.name)?
        }
    };
    if !matches!(bridge.kind, LinkKind::Bridge) {
        return Err(CniError::new(
            Code::Kernel,
            format!("{} exists but is no bridge: delete it, or name another bridge in the configuration", plan.name),
        ));
    }
    if !bridge.up {
        host.set_link(bridge.index, &LinkChange { up: Some(true), ..LinkChange::default() }).map_err(kernel_error)?;
    }
    ensure_addresses(host, &bridge, plan)?;
    Ok(bridge)
}

fn ensure_addresses(host: &mut Netlink, bridge: &Link, plan: &BridgePlan) -> Result<(), CniError> {
    if plan.addresses.is_empty() {
        return Ok(());
    }
    let present = host.addresses_of(bridge.index).map_err(kernel_error)?;
    for wanted in plan.addresses.iter().filter(|wanted| !present.contains(wanted)) {
        for other in present.iter().filter(|other| conflicts(**other, *wanted)) {
            let replace = match plan.stale {
                StaleAddress::Replace => true,
                StaleAddress::ReplaceWhenIdle => !has_ports(host, bridge.index)?,
                StaleAddress::Refuse => {
                    return Err(CniError::new(
                        Code::Kernel,
                        format!(
                            "{:?} already has an IP address different from {wanted}: it has {other}. \
                             Set forceAddress, or delete the bridge when no pod uses it",
                            plan.name
                        ),
                    ));
                }
            };
            if replace {
                host.delete_address(bridge.index, *other).map_err(kernel_error)?;
            }
        }
        host.add_address(bridge.index, *wanted).map_err(kernel_error)?;
    }
    // A gateway that does not forward is none; the file is per namespace and usually set already.
    for family in plan.addresses.iter().map(IpNetwork::is_ipv4) {
        let key = if family { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
        sysctl::set(key, "1").map_err(kernel_error)?;
    }
    // An address set by hand stays when ports come and go, also on a bridge that somebody else made.
    if let Some(mac) = bridge.mac.filter(|mac| *mac != plan.mac && present.is_empty()) {
        host.set_link(bridge.index, &LinkChange { mac: Some(mac), ..LinkChange::default() }).map_err(kernel_error)?;
    }
    Ok(())
}

/// IPv4 knows one gateway on a bridge; IPv6 addresses live side by side unless their subnets overlap (as upstream).
fn conflicts(other: IpNetwork, wanted: IpNetwork) -> bool {
    match (other, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(other), IpNetwork::V6(wanted)) => !other.ip().is_unicast_link_local() && other.overlaps(wanted),
        _ => false,
    }
}

fn has_ports(host: &mut Netlink, bridge: u32) -> Result<bool, CniError> {
    Ok(host.links().map_err(kernel_error)?.iter().any(|link| link.master == Some(bridge)))
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Link, CniError> {
    match netlink.link(name).map_err(kernel_error)? {
        Some(link) => Ok(link),
        None => Err(CniError::new(Code::Kernel, format!("{name} vanished while it was being set up: try again"))),
    }
}
