//! Masquerade and forwarding rules: one nftables table of our own for each family, as a value.
//!
//! The rules are flannel's (its iptables and nftables modes): traffic between pods keeps its addresses, traffic from pods to
//! the outside gets the node's, and so does traffic from outside addresses of this node into the pod network, unless it is
//! for this node's own pods. Beyond flannel's, the operator can name destinations that see pods by their own addresses.

use crate::family::{Family, PerFamily};
use crate::lease::Subnets;
use crate::options::Options;
use ipnetwork::IpNetwork;
use kernel::nft::{Action, Chain, Field, Hook, HookKind, HookPoint, Match, Protocol, Rule, Set, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the tables.
pub const TABLE: &str = "flanneld-rs";
/// kube-proxy marks packets that it masquerades itself with this bit (kubelet's iptables-masquerade-bit, 14).
const KUBE_MARK: u32 = 0x4000;
/// Name of the set of destinations that see pods by their own addresses.
const DIRECT: &str = "not-masqueraded";

/// On or off for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(PerFamily<()>);

impl Switch {
    /// For both families.
    pub const ON: Self = Switch(PerFamily { v4: Some(()), v6: Some(()) });
    /// For none.
    pub const OFF: Self = Switch(PerFamily { v4: None, v6: None });

    /// For one family alone.
    pub fn only(family: Family) -> Self {
        Switch([(family, ())].into_iter().collect())
    }

    /// Whether it is on for a family.
    pub fn is_on(self, family: Family) -> bool {
        self.0.get(family).is_some()
    }

    /// Whether it is on for any family.
    pub fn is_on_at_all(self) -> bool {
        !self.0.is_empty()
    }
}

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// masquerade what leaves the pod network
    pub masquerade: Switch,
    /// with random source ports
    pub fully_random: bool,
    /// destinations outside the pod network that pods reach under their own addresses, besides those that the network
    /// configuration names
    pub not_masqueraded: BTreeSet<IpNetwork>,
    /// accept forwarded traffic of the pod network
    pub forward: Switch,
    /// drop what is for the node's own subnet where nothing has a better route for it
    pub refuse_own: bool,
}

impl From<&Options> for Policy {
    fn from(options: &Options) -> Self {
        Policy {
            masquerade: options.ip_masq,
            fully_random: !options.ip_masq_fully_random_disable,
            not_masqueraded: options.non_masquerade_cidrs.iter().copied().collect(),
            forward: options.iptables_forward_rules,
            refuse_own: options.ip_blackhole_route,
        }
    }
}

/// The node that the rules are for.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// the pod network of each family
    pub networks: &'a PerFamily<IpNetwork>,
    /// its own part of them
    pub own: &'a Subnets,
    /// where its tunnels' outer packets come from, and the UDP ports that they go to
    pub tunnels: &'a BTreeSet<(IpAddr, u16)>,
}

/// The table of each family that has a network; none for a family that wants no rule.
pub fn tables(policy: &Policy, node: &Node<'_>) -> Vec<Table> {
    let mut tables = Vec::new();
    for (family, network) in node.networks.iter() {
        let (mut chains, mut sets) = (Vec::new(), BTreeMap::new());
        if policy.forward.is_on(family) {
            chains.push(forward(*network));
        }
        if let Some(own) = node.own.get(family).filter(|_| policy.masquerade.is_on(family)) {
            let direct = policy.not_masqueraded.iter().filter(|network| Family::of(network.ip()) == family);
            let direct: BTreeSet<IpNetwork> = direct.copied().collect();
            chains.push(masquerade(family, *network, *own, policy.fully_random, node.tunnels, !direct.is_empty()));
            if !direct.is_empty() {
                sets.insert(DIRECT.into(), Set::networks(address(family), direct));
            }
        }
        if !chains.is_empty() {
            tables.push(Table { family: nft_family(family), name: TABLE.into(), chains, sets });
        }
    }
    tables
}

fn address(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ipv4Address,
        Family::V6 => Field::Ipv6Address,
    }
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

fn masquerade(
    family: Family,
    network: IpNetwork,
    own: IpNetwork,
    fully_random: bool,
    tunnels: &BTreeSet<(IpAddr, u16)>,
    has_direct: bool,
) -> Chain {
    let multicast = match family {
        Family::V4 => IpNetwork::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => IpNetwork::new(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    let mut to_outside = vec![Match::Source(network)];
    to_outside.extend(multicast.ok().map(Match::NotDestination));
    // Peers know a tunnel by the address and port that it was announced with, whatever the underlay's addresses may be.
    let outer = tunnels.iter().filter(|(local, _)| Family::of(*local) == family).map(|(local, port)| {
        let matches = [Match::Source(IpNetwork::from(*local)), Match::DestinationPort(Protocol::Udp, *port)];
        rule(matches, Action::Return, "tunnels' own packets")
    });
    let mut rules: Vec<Rule> = outer.collect();
    rules.extend([
        rule([Match::Mark { mask: KUBE_MARK, value: KUBE_MARK }], Action::Return, "kube-proxy masquerades it"),
        rule([Match::Source(network), Match::Destination(network)], Action::Return, "pod to pod"),
        rule([Match::NotSource(network), Match::Destination(own)], Action::Return, "outside to our pods"),
    ]);
    if has_direct {
        let matches = [Match::Source(network), Match::DestinationIn(DIRECT.into())];
        rules.push(rule(matches, Action::Return, "pod to where pods are known"));
    }
    rules.extend([
        rule(to_outside, Action::Masquerade { fully_random }, "pod to outside"),
        rule(
            [Match::NotSource(network), Match::Destination(network)],
            Action::Masquerade { fully_random },
            "outside to other nodes' pods",
        ),
    ]);
    Chain { name: "postrouting".into(), hook: Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 100)), rules }
}

fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), action, comment: comment.into() }
}
