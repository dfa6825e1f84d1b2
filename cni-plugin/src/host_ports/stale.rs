//! Flows that began before a port led to where it leads now.

use super::mapping::Forward;
use kernel::Error;
use kernel::conntrack::{Conntrack, Flow, Pattern};
use kernel::netlink::Netlink;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Ends the flows to these ports that lead to somebody else: to a former pod, or to the host itself, whom a client spoke
/// to while there was no pod. Only those to the host's own addresses: a flow through the host to the same port of another
/// machine is not ours.
pub(super) fn forget_former_owners(forwards: &[Forward]) -> Result<(), Error> {
    let own: BTreeSet<IpAddr> = Netlink::open()?.addresses()?.into_iter().map(|(_, address)| address.ip()).collect();
    let pattern = |forward: &Forward| Pattern::ToPort {
        ipv4: forward.host.is_ipv4(),
        protocol: forward.protocol,
        port: forward.host_port,
    };
    let patterns: BTreeSet<Pattern> = forwards.iter().map(pattern).collect();
    let is_stale = |flow: &Flow, forward: &Forward| {
        let target = flow.original.destination;
        let ours = if forward.host.is_unspecified() {
            target.is_ipv4() == forward.host.is_ipv4() && (own.contains(&target) || target.is_loopback())
        } else {
            target == forward.host
        };
        ours && (flow.protocol, flow.original.destination_port) == (forward.protocol as u8, forward.host_port)
            && (flow.reply.source, flow.reply.source_port) != (forward.pod.ip(), forward.pod_port)
    };
    Conntrack::open()?
        .forget(&Vec::from_iter(patterns), |flow| forwards.iter().any(|forward| is_stale(flow, forward)))
        .map(drop)
}

/// Ends the flows to the ports of a pod that is going.
pub(super) fn forget_pod(forwards: &[Forward]) -> Result<(), Error> {
    if forwards.is_empty() {
        return Ok(());
    }
    let ports: BTreeSet<(IpAddr, u8, u16)> =
        forwards.iter().map(|forward| (forward.pod.ip(), forward.protocol as u8, forward.pod_port)).collect();
    let pods: BTreeSet<Pattern> = ports.iter().map(|(pod, _, _)| Pattern::AnsweredBy(*pod)).collect();
    let is_of_a_port = |flow: &Flow| ports.contains(&(flow.reply.source, flow.protocol, flow.reply.source_port));
    Conntrack::open()?.forget(&Vec::from_iter(pods), is_of_a_port).map(drop)
}
