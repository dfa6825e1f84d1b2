//! The bridge that pods are plugged into.

use crate::config::StaleAddress;
use crate::plan::BridgePlan;
use crate::plugin::{failed, kernel_error};
use crate::ready::await_reception;
use cni_spec::{CniError, Code};
use ipnetwork::IpNetwork;
use kernel::netlink::{Link, LinkChange, LinkKind, Netlink};
use kernel::{advertisements, sysctl};
use nix::errno::Errno;
use std::net::IpAddr;

/// What a person reads in `ip link` of a bridge that we made.
pub(crate) const BRIDGE_ALIAS: &str = "cni-plugin";

/// The bridge of the plan: made if it is not there, up, with its gateway addresses and an address that stays.
pub(crate) fn ensure_bridge(host: &mut Netlink, plan: &BridgePlan) -> Result<Link, CniError> {
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
    refuse_advertisements(&plan.name);
    find(host, &plan.name)
}

/// Router advertisements from a pod must not reconfigure the node. Without IPv6 there is no such file.
pub(crate) fn refuse_advertisements(device: &str) {
    let _ = sysctl::set(&format!("net/ipv6/conf/{device}/accept_ra"), "0");
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
    if !missing.is_empty() {
        // It becomes the pods' gateway now, whoever made it.
        refuse_advertisements(&plan.name);
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
        await_reception(host, wanted.ip())?;
    }
    if plan.promiscuous && !bridge.promiscuous {
        host.set_link(bridge.index, &LinkChange { promiscuous: Some(true), ..LinkChange::default() })?;
    }
    plan.addresses.iter().try_for_each(|address| forward(host, address.ip()))?;
    // An address set by hand stays when ports come and go, also on a bridge that somebody else made.
    match bridge.mac {
        Some(mac) if mac != plan.mac && !missing.is_empty() => {
            host.set_link(bridge.index, &LinkChange { mac: Some(mac), ..LinkChange::default() })
        }
        _ => Ok(()),
    }
}

/// A gateway that does not forward is none; the file is per namespace and usually set already. A node that has its own way out
/// from its routers keeps it.
pub(crate) fn forward(host: &mut Netlink, gateway: IpAddr) -> kernel::Result<()> {
    let key = if gateway.is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
    if gateway.is_ipv6() && sysctl::get(key).is_ok_and(|value| value == "0") {
        let heard = advertisements::heard(host)?.on;
        for device in heard.iter().filter(|device| advertisements::end_with_forwarding(device)) {
            match sysctl::set(&advertisements::accept_ra(device), advertisements::ALWAYS) {
                // It has gone meanwhile.
                Err(error) if error.errno == Errno::ENOENT => {}
                outcome => outcome?,
            }
        }
    }
    sysctl::set(key, "1")
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
