//! `type: ptp`: a pair of devices between the pod and the node, and no bridge. All that the pod sends goes to the node.

use crate::bridge::{forward, refuse_advertisements};
use crate::plan::PodPlan;
use cni_spec::IpAssignment;
use ipnetwork::IpNetwork;
use kernel::netlink::{Netlink, RouteSpec};
use kernel::{Error, POD_ROUTE_PROTOCOL, Result, sysctl};
use nix::errno::Errno;
use std::net::IpAddr;

/// RTPROT_KERNEL: who makes the route to an address's own subnet (linux/rtnetlink.h).
const BY_THE_KERNEL: u8 = 2;

/// Connects the two ends: the node takes the gateway's address on its own end and sends the pod's addresses there, and the
/// pod reaches even its own subnet over the gateway, as with the reference plugin. All routes go with the pair.
pub(crate) fn connect(plan: &PodPlan, host: &mut Netlink, pod: &mut Netlink) -> Result<()> {
    let (near, far) = (index(host, &plan.veth.host)?, index(pod, &plan.veth.pod)?);
    refuse_advertisements(&plan.veth.host);
    if plan.ips.iter().any(|ip| ip.address.is_ipv6()) {
        sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", plan.veth.host), "0")?;
    }
    for ip in &plan.ips {
        let Some(gateway) = ip.gateway else { continue };
        let address = ip.address.ip();
        forward(host, gateway)?;
        match host.add_address(near, IpNetwork::from(gateway)) {
            // Of two addresses of one subnet, the first has brought it.
            Err(error) if error.errno == Errno::EEXIST => {}
            added => added?,
        }
        let to_pod =
            RouteSpec { dst: address.into(), dev: Some(near), protocol: POD_ROUTE_PROTOCOL, ..RouteSpec::default() };
        host.replace_route(&to_pod)?;
        host.introduce_neighbour(near, address, plan.veth.mac)?;

        let to_gateway =
            RouteSpec { dst: gateway.into(), dev: Some(far), source: Some(address), ..RouteSpec::default() };
        pod.replace_route(&to_gateway)?;
        let Some(subnet) = subnet(ip.address) else { continue };
        let on_link = RouteSpec { dst: subnet, dev: Some(far), protocol: BY_THE_KERNEL, ..RouteSpec::default() };
        pod.delete_route(&on_link)?;
        pod.replace_route(&RouteSpec { dst: subnet, via: Some(gateway), ..to_gateway })?;
    }
    Ok(())
}

/// What the node lacks of [`connect`], for CHECK.
pub(crate) fn check(host: &mut Netlink, host_end: &str, ips: &[&IpAssignment]) -> Result<Vec<String>> {
    // That it is missing is told elsewhere.
    let Some(link) = host.link(host_end)? else { return Ok(Vec::new()) };
    let mut missing = Vec::new();
    let addresses = host.addresses_of(link.index)?;
    let routes = host.routes()?;
    for ip in ips {
        if let Some(gateway) = ip.gateway.filter(|gateway| !addresses.iter().any(|address| address.ip() == *gateway)) {
            missing.push(format!("host interface {host_end} lacks the gateway address {gateway}"));
        }
        let dst = IpNetwork::from(ip.address.ip());
        if !routes.iter().any(|route| route.dst == dst && route.dev == Some(link.index)) {
            missing.push(format!("the host lacks the route to {} dev {host_end}", ip.address.ip()));
        }
    }
    Ok(missing)
}

/// The subnet that an address is in, if it is more than the address itself.
fn subnet(address: IpNetwork) -> Option<IpNetwork> {
    let full = match address.ip() {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    if address.prefix() == full { None } else { IpNetwork::new(address.network(), address.prefix()).ok() }
}

fn index(netlink: &Netlink, name: &str) -> Result<u32> {
    let vanished = || Error::new(format!("looking up {name}"), Errno::ENODEV).because("it vanished: try again");
    netlink.index_of(name)?.ok_or_else(vanished)
}
