//! Flows that began before a port led to where it leads now.
//!
//! They are looked for in a process of its own: the kernel walks all buckets of its table for that, which takes some 10 ms
//! on an ordinary machine, and no client notices when a later packet finds the way instead of its next.

use super::mapping::Forward;
use kernel::conntrack::{Conntrack, Flow, Pattern};
use kernel::netlink::Netlink;
use kernel::nft::Nft;
use kernel::{Error, detached};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How long the search waits for what is to follow. The kernel walks its table without a pause in which it could tell that an
/// RCU grace period is over, and whoever removes or makes a device, as the rest of this chain is about to, waits for just that:
/// a DEL took ten times as long with the search beside it.
const AFTER_THE_CHAIN: Duration = Duration::from_millis(100);

/// Ends the flows to these ports that lead to somebody else: to a former pod, or to the host itself, whom a client spoke
/// to while there was no pod. Only those to the host's own addresses: a flow through the host to the same port of another
/// machine is not ours. `nft` is done with.
pub(super) fn forget_former_owners(forwards: &[Forward], nft: Nft) -> Result<(), Error> {
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
    forget(&patterns, nft, |flow| forwards.iter().any(|forward| is_stale(flow, forward)))
}

/// Ends the flows to the ports of a pod that is going. `nft` is done with.
pub(super) fn forget_pod(forwards: &[Forward], nft: Nft) -> Result<(), Error> {
    let ports: BTreeSet<(IpAddr, u8, u16)> =
        forwards.iter().map(|forward| (forward.pod.ip(), forward.protocol as u8, forward.pod_port)).collect();
    let pods: BTreeSet<Pattern> = ports.iter().map(|(pod, _, _)| Pattern::AnsweredBy(*pod)).collect();
    forget(&pods, nft, |flow| ports.contains(&(flow.reply.source, flow.protocol, flow.reply.source_port)))
}

fn forget(patterns: &BTreeSet<Pattern>, nft: Nft, select: impl Fn(&Flow) -> bool) -> Result<(), Error> {
    let patterns = Vec::from_iter(patterns.iter().copied());
    let mut conntrack = Conntrack::open()?;
    // Here a kernel that lacks connection tracking through netlink can still be told of.
    let flows = if patterns.is_empty() { 0 } else { conntrack.count()? };
    detached::finish((nft, conntrack), |(_nft, conntrack)| {
        if flows > 0 {
            std::thread::sleep(AFTER_THE_CHAIN);
            // Nobody is left to be told.
            let _ = conntrack.forget(&patterns, select);
        }
    });
    Ok(())
}
