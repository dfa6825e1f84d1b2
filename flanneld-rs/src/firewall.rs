//! Masquerade and forwarding rules: one nftables table of our own for each family, as a value.
//!
//! The rules are flannel's (its iptables and nftables modes): traffic between pods keeps its addresses, traffic from pods to
//! the outside gets the node's, and so does traffic from outside addresses of this node into the pod network, unless it is
//! for this node's own pods.

use crate::family::{Family, PerFamily};
use ipnetwork::IpNetwork;
use kernel::nft::{Action, Chain, Hook, HookKind, HookPoint, Match, Rule, Table};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the tables.
pub const TABLE: &str = "flanneld-rs";
/// kube-proxy marks packets that it masquerades itself with this bit (kubelet's iptables-masquerade-bit, 14).
const KUBE_MARK: u32 = 0x4000;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// masquerade what leaves the pod network
    pub masquerade: bool,
    /// with random source ports
    pub fully_random: bool,
    /// accept forwarded traffic of the pod network
    pub forward: bool,
    /// refuse what is for the node's own subnet where nothing has a better route for it
    pub refuse_own: bool,
}

/// The table of each family that has a network; none for a family that wants no rule.
pub fn tables(policy: Policy, networks: &PerFamily<IpNetwork>, own: &PerFamily<IpNetwork>) -> Vec<Table> {
    let mut tables = Vec::new();
    for (family, network) in networks.iter() {
        let mut chains = Vec::new();
        if policy.forward {
            chains.push(forward(*network));
        }
        if let Some(own) = own.get(family).filter(|_| policy.masquerade) {
            chains.push(masquerade(family, *network, *own, policy.fully_random));
        }
        if !chains.is_empty() {
            tables.push(Table { family: nft_family(family), name: TABLE.into(), chains, ..Table::default() });
        }
    }
    tables
}

/// The nftables family of an address family.
pub fn nft_family(family: Family) -> kernel::nft::Family {
    match family {
        Family::V4 => kernel::nft::Family::Ip,
        Family::V6 => kernel::nft::Family::Ip6,
    }
}

fn forward(network: IpNetwork) -> Chain {
    Chain {
        name: "forward".into(),
        hook: Some(Hook::new(HookKind::Filter, HookPoint::Forward, 0)),
        rules: vec![
            rule([Match::Source(network)], Action::Accept, "from pods"),
            rule([Match::Destination(network)], Action::Accept, "to pods"),
        ],
    }
}

fn masquerade(family: Family, network: IpNetwork, own: IpNetwork, fully_random: bool) -> Chain {
    let multicast = match family {
        Family::V4 => IpNetwork::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => IpNetwork::new(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    let mut to_outside = vec![Match::Source(network)];
    to_outside.extend(multicast.ok().map(Match::NotDestination));
    Chain {
        name: "postrouting".into(),
        hook: Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 100)),
        rules: vec![
            rule([Match::Mark { mask: KUBE_MARK, value: KUBE_MARK }], Action::Return, "kube-proxy masquerades it"),
            rule([Match::Source(network), Match::Destination(network)], Action::Return, "pod to pod"),
            rule([Match::NotSource(network), Match::Destination(own)], Action::Return, "outside to our pods"),
            rule(to_outside, Action::Masquerade { fully_random }, "pod to outside"),
            rule(
                [Match::NotSource(network), Match::Destination(network)],
                Action::Masquerade { fully_random },
                "outside to other nodes' pods",
            ),
        ],
    }
}

fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), action, comment: comment.into() }
}
