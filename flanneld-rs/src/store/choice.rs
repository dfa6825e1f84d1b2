//! Which subnets a node takes: pure, the same for every store.

use super::Want;
use crate::family::PerFamily;
use crate::lease::{Announcement, Subnets, overlap};
use ipnetwork::IpNetwork;

/// What a store knows of one lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) subnets: &'a Subnets,
    pub(super) announcement: &'a Announcement,
    /// identity of the node that holds it, where the store keeps it
    pub(super) node: Option<&'a str>,
    /// bound by an administrator: never deleted
    pub(super) reserved: bool,
}

/// What to do. Indices are into the leases that were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This lease is ours already.
    Ours(usize),
    /// Nobody has these subnets. `stale` are leases of ours that the configuration no longer allows: to be deleted.
    Free { subnets: Subnets, stale: Vec<usize> },
    /// The pool of some family has nothing left.
    Exhausted,
}

/// flannel's order: the lease of the same node, if the configuration still allows it; the subnets of the last life, if they
/// are free; any of the first hundred free ones. `random(n)` gives a number below n.
pub(super) fn choose(want: &Want<'_>, leases: &[Known<'_>], mut random: impl FnMut(usize) -> usize) -> Choice {
    let previous = want.previous.map(|_, subnet| normal(*subnet));
    let ours = |index: &usize| {
        leases.get(*index).is_some_and(|lease| {
            // The backend's data proves a lease of another address ours only if it is the one we remember.
            let proven = lease.announcement.is_same_node(want.announcement)
                && (lease.announcement.public_ip() == want.announcement.public_ip() || *lease.subnets == previous);
            proven || lease.node == Some(want.node)
        })
    };
    let (fitting, stale): (Vec<usize>, Vec<usize>) = (0..leases.len())
        .filter(ours)
        .partition(|index| leases.get(*index).is_some_and(|lease| want.config.allows(lease.subnets)));
    // Several fit when a node changed its address and came back. An administrator's word goes first, then memory.
    let rank = |index: &&usize| leases.get(**index).map(|lease| (!lease.reserved, *lease.subnets != previous));
    if let Some(index) = fitting.iter().min_by_key(rank) {
        return Choice::Ours(*index);
    }
    let stale: Vec<usize> =
        stale.into_iter().filter(|index| leases.get(*index).is_some_and(|lease| !lease.reserved)).collect();
    let taken = || {
        let kept = leases.iter().enumerate().filter(|(index, _)| !stale.contains(index));
        kept.flat_map(|(_, lease)| lease.subnets.iter().map(|(_, subnet)| subnet))
    };
    let subnets: Subnets = want
        .config
        .pools
        .iter()
        .filter_map(|(family, pool)| {
            let remembered = previous
                .get(family)
                .filter(|subnet| pool.is_compatible(subnet) && !taken().any(|other| overlap(other, subnet)));
            Some((family, remembered.copied().or_else(|| pool.pick(taken(), &mut random))?))
        })
        .collect();
    if subnets.same_families(&want.config.pools) { Choice::Free { subnets, stale } } else { Choice::Exhausted }
}

/// Without host bits: `subnet.env` names the gateway's address, not the network's.
fn normal(subnet: IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet)
}

/// A line for operators on an empty pool.
pub(super) fn exhausted(want: &Want<'_>, leases: usize) -> String {
    let pools: PerFamily<String> =
        want.config.pools.map(|_, pool| format!("{} in subnets of /{}", pool.network(), pool.subnet_length()));
    let pools: Vec<&str> = pools.iter().map(|(_, pool)| pool.as_str()).collect();
    format!(
        "no subnet is left in {} ({leases} leases): enlarge the network, or delete the leases of nodes that are gone",
        pools.join(" and ")
    )
}
