//! CHECK: compares the kernel with what ADD returned, and names every difference.

use crate::add::open_sandbox;
use crate::attachment;
use crate::bridge::kernel_error;
use crate::config::{Dialect, PluginConfig};
use cni_spec::{AddResult, CniError, Code, Interface, NetworkConfig, Sandbox};
use ipam::host_local;
use kernel::netlink::{Link, LinkKind, Netlink};
use std::net::IpAddr;

/// Fails with all differences between `prevResult` and the kernel in one message.
pub(crate) fn check(dialect: Dialect, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
    let parsed = PluginConfig::parse(dialect, config, &sandbox.args)?;
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK needs a prevResult, the result of ADD"));
    };
    let netns = open_sandbox(sandbox)?;
    let mut differences = Vec::new();
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;

    let bridge = host.link(&parsed.bridge).map_err(kernel_error)?;
    check_bridge(&parsed, previous, bridge.as_ref(), &mut host, &mut differences)?;
    check_host_end(sandbox, &parsed, bridge.as_ref(), &mut host, &mut differences)?;
    let listed = previous
        .interfaces
        .iter()
        .find(|interface| !interface.sandbox.is_empty() && interface.name == sandbox.id.ifname);
    check_pod_end(sandbox, listed, previous, &mut pod, &mut differences)?;
    if let Some(bridge) = &bridge {
        check_neighbours(bridge, listed, previous, &mut host, &mut differences)?;
    }
    let recorded = parsed.ipam.as_ref().map(|ipam| host_local::check(ipam, &config.name, &sandbox.id));
    if let Some(Err(error)) = recorded {
        differences.push(error.msg);
    }
    if differences.is_empty() { Ok(()) } else { Err(CniError::new(Code::CheckFailed, differences.join("; "))) }
}

fn check_bridge(
    parsed: &PluginConfig,
    previous: &AddResult,
    bridge: Option<&Link>,
    host: &mut Netlink,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    let name = &parsed.bridge;
    let Some(bridge) = bridge else {
        differences.push(format!("bridge {name} is missing"));
        return Ok(());
    };
    if bridge.kind != LinkKind::Bridge {
        differences.push(format!("{name} is no bridge"));
    }
    if !bridge.up {
        differences.push(format!("bridge {name} is down"));
    }
    if parsed.gateway != crate::config::Gateway::None {
        let present = host.addresses_of(bridge.index).map_err(kernel_error)?;
        for gateway in previous.ips.iter().filter_map(|ip| ip.gateway) {
            if !present.iter().any(|address| address.ip() == gateway) {
                differences.push(format!("bridge {name} lacks the gateway address {gateway}"));
            }
        }
    }
    Ok(())
}

/// The host's end, under our name for it. A pod that the reference plugin attached has a random one there, which the
/// result does not tell apart from the bridge reliably; its pod's end is checked all the same.
fn check_host_end(
    sandbox: &Sandbox,
    parsed: &PluginConfig,
    bridge: Option<&Link>,
    host: &mut Netlink,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    let name = attachment::host_veth(&sandbox.id);
    let Some(link) = host.link(&name).map_err(kernel_error)? else {
        differences.push(format!("host interface {name} is missing"));
        return Ok(());
    };
    if !link.up {
        differences.push(format!("host interface {name} is down"));
    }
    if let Some(bridge) = bridge.filter(|bridge| link.master != Some(bridge.index)) {
        differences.push(format!("host interface {name} is not attached to bridge {}", bridge.name));
    }
    if link.hairpin.is_some_and(|hairpin| hairpin != parsed.hairpin) {
        differences.push(format!("host interface {name} should have hairpin mode {}", parsed.hairpin));
    }
    Ok(())
}

fn check_pod_end(
    sandbox: &Sandbox,
    listed: Option<&Interface>,
    previous: &AddResult,
    pod: &mut Netlink,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    let name = &sandbox.id.ifname;
    let Some(listed) = listed else {
        differences.push(format!("prevResult lists no interface {name} in a sandbox"));
        return Ok(());
    };
    let Some(link) = pod.link(name).map_err(kernel_error)? else {
        differences.push(format!("interface {name} is missing in the sandbox"));
        return Ok(());
    };
    if link.kind != LinkKind::Veth {
        differences.push(format!("interface {name} in the sandbox is no veth"));
    }
    if !link.up {
        differences.push(format!("interface {name} in the sandbox is down"));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !listed.mac.is_empty() && !listed.mac.eq_ignore_ascii_case(&mac) {
        differences.push(format!("interface {name} in the sandbox has the address {mac} instead of {}", listed.mac));
    }
    if let Some(mtu) = listed.mtu.filter(|mtu| *mtu != 0 && *mtu != link.mtu) {
        differences.push(format!("interface {name} in the sandbox has MTU {} instead of {mtu}", link.mtu));
    }
    let present = pod.addresses_of(link.index).map_err(kernel_error)?;
    for ip in &previous.ips {
        if !present.contains(&ip.address) {
            differences.push(format!("interface {name} in the sandbox lacks the address {}", ip.address));
        }
    }
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    for address in present.iter().filter(|address| !link_local(address.ip())) {
        if !previous.ips.iter().any(|ip| ip.address == *address) {
            differences.push(format!("interface {name} in the sandbox has the foreign address {address}"));
        }
    }
    let routes = pod.routes().map_err(kernel_error)?;
    for wanted in &previous.routes {
        let via = wanted.gw;
        if !routes.iter().any(|route| route.dst == wanted.dst && (via.is_none() || route.via == via)) {
            let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
            differences.push(format!("the sandbox lacks the route to {}{via}", wanted.dst));
        }
    }
    Ok(())
}

/// A neighbour entry of the host that leads a pod's address somewhere else is what makes a pod unreachable from its node.
fn check_neighbours(
    bridge: &Link,
    listed: Option<&Interface>,
    previous: &AddResult,
    host: &mut Netlink,
    differences: &mut Vec<String>,
) -> Result<(), CniError> {
    let Some(wanted) = listed.filter(|interface| !interface.mac.is_empty()) else { return Ok(()) };
    let neighbours = host.neighbours(Some(bridge.index)).map_err(kernel_error)?;
    for ip in previous.ips.iter().map(|ip| ip.address.ip()) {
        for neighbour in neighbours.iter().filter(|neighbour| neighbour.ip == ip) {
            let mac = neighbour.mac.map(|mac| mac.to_string()).unwrap_or_default();
            if !mac.eq_ignore_ascii_case(&wanted.mac) {
                differences.push(format!(
                    "the host's neighbour entry for {ip} on {} is {mac}, not {}",
                    bridge.name, wanted.mac
                ));
            }
        }
    }
    Ok(())
}
