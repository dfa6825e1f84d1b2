//! ADD: allocate, plan, wire. Whatever fails undoes what it made, and nothing that was there before; the original error is
//! what the runtime reads.

use crate::bridge::{failed, kernel_error};
use crate::config::{Dialect, PluginConfig, StaleAddress};
use crate::plan::{self, BridgePlan, PodPlan, VethPlan};
use crate::teardown::Remains;
use cni_spec::{AddResult, CniError, Code, NetworkConfig, Sandbox};
use ipam::host_local;
use ipnetwork::IpNetwork;
use kernel::netlink::{Link, LinkChange, LinkKind, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, detached, sysctl};
use nix::errno::Errno;
use std::net::IpAddr;

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
    let reserved: Vec<IpAddr> = allocated.ips.iter().map(|ip| ip.address.ip()).collect();
    let made = plan::pod(&parsed, &config.name, &sandbox.id, &allocated).and_then(|plan| {
        let bridge = wire(&plan, sandbox, &config.name, &netns)?;
        Ok(plan.result(bridge, &sandbox.netns, allocated))
    });
    if let (Err(_), Some(ipam)) = (&made, &parsed.ipam) {
        // The reason of the failure is the answer; a failure to undo it would only hide it, and DEL will meet it again.
        let _ = host_local::release(&ipam.data_dir, &config.name, &sandbox.id, &reserved);
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

/// Carries the plan out and returns the bridge's address. Once the pair is made, a failure removes it again.
fn wire(plan: &PodPlan, sandbox: &Sandbox, network: &str, netns: &Netns) -> Result<Mac, CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(netns).map_err(kernel_error)?;
    let bridge = ensure_bridge(&mut host, &plan.bridge)?;
    create_veth(&plan.veth, netns, &mut host, &mut pod, bridge.index)?;
    let place = format!("setting up {} in {}", plan.veth.pod, sandbox.netns.display());
    let done = configure_pod(plan, netns, &mut pod).map_err(failed(place)).and_then(|()| {
        // The host speaks to a reused address at once, instead of to whoever had it before until an old entry expires.
        let mut addresses = plan.ips.iter().map(|ip| ip.address.ip());
        addresses
            .try_for_each(|ip| host.set_neighbour(bridge.index, ip, plan.veth.mac))
            .map_err(failed(format!("setting up bridge {}", bridge.name)))
    });
    if done.is_err() {
        let addresses: Vec<IpAddr> = plan.ips.iter().map(|ip| ip.address.ip()).collect();
        let _ = Remains { id: &sandbox.id, network, netns: None, bridge: &bridge.name, addresses: &addresses }.remove();
    }
    done.map(|()| bridge.mac.unwrap_or(plan.bridge.mac))
}

fn create_veth(
    veth: &VethPlan,
    netns: &Netns,
    host: &mut Netlink,
    pod: &mut Netlink,
    bridge: u32,
) -> Result<(), CniError> {
    let occupied = || {
        CniError::new(
            Code::Kernel,
            format!("{} exists already in the sandbox: delete it, or attach under another CNI_IFNAME", veth.pod),
        )
    };
    if let Some(present) = host.link(&veth.host).map_err(kernel_error)? {
        if pod.link(&veth.pod).map_err(kernel_error)?.is_some() {
            return Err(occupied());
        }
        if present.alias != veth.alias {
            let whose = match present.alias.as_str() {
                "" => "somebody else",
                alias => alias,
            };
            return Err(CniError::new(
                Code::Kernel,
                format!("{} exists already and belongs to {whose}: detach or delete that first", veth.host),
            ));
        }
        // Marked for this very attachment, which is not in its sandbox: a leftover of a crash.
        detached::delete_found(host, &present).map_err(kernel_error)?;
    }
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
    host.create_veth(&spec).map_err(|error| if error.errno == Errno::EEXIST { occupied() } else { kernel_error(error) })
}

fn configure_pod(plan: &PodPlan, netns: &Netns, pod: &mut Netlink) -> kernel::Result<()> {
    if plan.ips.iter().any(|ip| ip.address.is_ipv6()) {
        // Runtimes switch IPv6 off in new namespaces; an interface that is given an IPv6 address wants it.
        let _inside = netns.enter()?;
        sysctl::set("net/ipv6/conf/lo/disable_ipv6", "0")?;
        sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", plan.veth.pod), "0")?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    if let Some(loopback) = pod.link("lo")?.filter(|loopback| !loopback.up) {
        pod.set_link(loopback.index, &up)?;
    }
    let link = find(pod, &plan.veth.pod)?;
    for ip in &plan.ips {
        pod.add_address(link.index, ip.address)?;
    }
    pod.set_link(link.index, &up)?;
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
        match pod.add_route(&spec) {
            // Of several interfaces with the same route the first one keeps it, as with the reference plugins.
            Err(error) if error.errno == Errno::EEXIST => {}
            added => added?,
        }
    }
    Ok(())
}

/// The bridge of the plan: made if it is not there, up, with its gateway addresses and an address that stays.
fn ensure_bridge(host: &mut Netlink, plan: &BridgePlan) -> Result<Link, CniError> {
    let bridge = find_or_create_bridge(host, plan).map_err(failed(format!("setting up bridge {}", plan.name)))?;
    if bridge.kind != LinkKind::Bridge {
        return Err(CniError::new(
            Code::Kernel,
            format!("{} exists but is no bridge: delete it, or name another bridge in the configuration", plan.name),
        ));
    }
    let present = if plan.addresses.is_empty() { Ok(Vec::new()) } else { host.addresses_of(bridge.index) };
    let present = present.map_err(kernel_error)?;
    let conflict = |wanted: &&IpNetwork| present.iter().find(|other| conflicts(**other, **wanted));
    let missing: Vec<&IpNetwork> = plan.addresses.iter().filter(|wanted| !present.contains(wanted)).collect();
    if plan.stale == StaleAddress::Refuse
        && let Some((wanted, other)) = missing.iter().find_map(|wanted| Some((*wanted, conflict(wanted)?)))
    {
        return Err(CniError::new(
            Code::Kernel,
            format!(
                "{:?} already has an IP address different from {wanted}: it has {other}. \
                 Set forceAddress, or delete the bridge when no pod uses it",
                plan.name
            ),
        ));
    }
    configure_bridge(host, &bridge, plan, &present, &missing)
        .map_err(failed(format!("setting up bridge {}", plan.name)))?;
    Ok(bridge)
}

fn find_or_create_bridge(host: &mut Netlink, plan: &BridgePlan) -> kernel::Result<Link> {
    if let Some(bridge) = host.link(&plan.name)? {
        return Ok(bridge);
    }
    match host.create_bridge(&plan.name, plan.mac, plan.mtu, BRIDGE_ALIAS) {
        // Another ADD made it in the meantime.
        Err(error) if error.errno == Errno::EEXIST => {}
        made => made?,
    }
    // Router advertisements from a pod must not reconfigure the node. Without IPv6 there is no such file.
    let _ = sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", plan.name), "0");
    find(host, &plan.name)
}

fn configure_bridge(
    host: &mut Netlink,
    bridge: &Link,
    plan: &BridgePlan,
    present: &[IpNetwork],
    missing: &[&IpNetwork],
) -> kernel::Result<()> {
    if !bridge.up {
        host.set_link(bridge.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    }
    if missing.iter().any(|address| address.is_ipv6()) {
        sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", plan.name), "0")?;
    }
    for wanted in missing {
        for other in present.iter().filter(|other| conflicts(**other, **wanted)) {
            let replace = match plan.stale {
                StaleAddress::Refuse => false,
                StaleAddress::Replace => true,
                StaleAddress::ReplaceWhenIdle => bridge.alias == BRIDGE_ALIAS && !has_ports(host, bridge.index)?,
            };
            if replace {
                host.delete_address(bridge.index, *other)?;
            }
        }
        host.add_address(bridge.index, **wanted)?;
    }
    // A gateway that does not forward is none; the file is per namespace and usually set already.
    for address in &plan.addresses {
        let key = if address.is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
        sysctl::set(key, "1")?;
    }
    // An address set by hand stays when ports come and go, also on a bridge that somebody else made.
    match bridge.mac {
        Some(mac) if !plan.addresses.is_empty() && mac != plan.mac && present.is_empty() => {
            host.set_link(bridge.index, &LinkChange { mac: Some(mac), ..LinkChange::default() })
        }
        _ => Ok(()),
    }
}

/// IPv4 knows one gateway on a bridge; IPv6 addresses live side by side unless their subnets overlap (as upstream).
fn conflicts(other: IpNetwork, wanted: IpNetwork) -> bool {
    match (other, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(other), IpNetwork::V6(wanted)) => !other.ip().is_unicast_link_local() && other.overlaps(wanted),
        _ => false,
    }
}

fn has_ports(host: &mut Netlink, bridge: u32) -> kernel::Result<bool> {
    Ok(host.links()?.iter().any(|link| link.master == Some(bridge)))
}

fn find(netlink: &mut Netlink, name: &str) -> kernel::Result<Link> {
    let vanished = || kernel::Error::new(format!("looking up {name}"), Errno::ENODEV).because("it vanished: try again");
    netlink.link(name)?.ok_or_else(vanished)
}
