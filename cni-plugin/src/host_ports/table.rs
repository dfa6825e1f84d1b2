//! The nftables side, as values: a table of fixed rules for each family, and the elements that a forward is.
//!
//! Rules look ports up in maps and never mention a pod, so that a packet's way is the same however many pods there are, and
//! an attachment is a few elements that come and go in one transaction.

use super::mapping::{Forward, Masquerade};
use ipnetwork::IpNetwork;
use kernel::nft::{
    Action, Chain, Element, Family, Field, Hook, HookKind, HookPoint, Interface, Match, Rule, Set, Table, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the tables.
pub const TABLE: &str = "cni-plugin-host-ports";
/// The mark of packets to be masqueraded: the bit of the reference portmap plugin, which means the same there.
pub const MARK: u32 = 0x2000;

/// Ports of every address, and of one: to be masqueraded for neighbours, or for everybody.
const PORTS: &str = "ports";
const ADDRESS_PORTS: &str = "address_ports";
/// The same, never masqueraded.
const DIRECT_PORTS: &str = "direct_ports";
const DIRECT_ADDRESS_PORTS: &str = "direct_address_ports";
/// Those of the first two that are masqueraded for everybody.
const MASQUERADED_PORTS: &str = "masqueraded_ports";
const MASQUERADED_ADDRESS_PORTS: &str = "masqueraded_address_ports";
/// The subnets of the pods.
const SUBNETS: &str = "subnets";

/// Elements by the name of their set.
pub(super) type Elements = BTreeMap<&'static str, BTreeSet<Element>>;

/// Both families.
pub(super) const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The family that a forward is of.
pub(super) fn family(forward: &Forward) -> Family {
    if forward.pod.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

/// The elements of a port, without the subnet, which many may share.
pub(super) fn port_elements(forward: &Forward) -> Elements {
    let mut key = vec![Value::Protocol(forward.protocol), Value::Port(forward.host_port)];
    let any = forward.host.is_unspecified();
    if !any {
        key.insert(0, forward.host.into());
    }
    let one = |set: [&'static str; 2], element| (if any { set[0] } else { set[1] }, BTreeSet::from([element]));
    let entry = Element::entry(key.clone(), [forward.pod.ip().into(), Value::Port(forward.pod_port)]);
    match forward.masquerade {
        Masquerade::Nobody => BTreeMap::from([one([DIRECT_PORTS, DIRECT_ADDRESS_PORTS], entry)]),
        Masquerade::Neighbours => BTreeMap::from([one([PORTS, ADDRESS_PORTS], entry)]),
        Masquerade::Everybody => BTreeMap::from([
            one([PORTS, ADDRESS_PORTS], entry),
            one([MASQUERADED_PORTS, MASQUERADED_ADDRESS_PORTS], Element::entry(key, [])),
        ]),
    }
}

/// The element of a subnet.
pub(super) fn subnet_elements(subnet: IpNetwork) -> Elements {
    BTreeMap::from([(SUBNETS, BTreeSet::from([Element::from(subnet)]))])
}

/// All elements of the forwards.
pub(super) fn elements<'a>(forwards: impl IntoIterator<Item = &'a Forward>) -> Elements {
    elements_but_subnets(forwards, |_| false)
}

/// All elements of the forwards, without those subnets that `left_out` picks.
pub(super) fn elements_but_subnets<'a>(
    forwards: impl IntoIterator<Item = &'a Forward>,
    left_out: impl Fn(IpNetwork) -> bool,
) -> Elements {
    let mut all = Elements::new();
    let mut add = |elements: Elements| {
        for (set, elements) in elements {
            all.entry(set).or_default().extend(elements);
        }
    };
    for forward in forwards {
        add(port_elements(forward));
        if !left_out(forward.subnet()) {
            add(subnet_elements(forward.subnet()));
        }
    }
    all
}

/// The table of `family` for the forwards, of which those of the other family are left out.
pub fn table<'a>(family: Family, forwards: impl IntoIterator<Item = &'a Forward>) -> Table {
    let address = if family == Family::Ip { Field::Ipv4Address } else { Field::Ipv6Address };
    let (any, one) = ([Field::Protocol, Field::Port], [address, Field::Protocol, Field::Port]);
    let leads = [address, Field::Port];
    let map = |key: &[Field]| Set::map(key, leads, BTreeSet::new());
    let set = |key: &[Field]| Set::map(key, [], BTreeSet::new());
    let mut sets = BTreeMap::from(
        [
            (PORTS, map(&any)),
            (ADDRESS_PORTS, map(&one)),
            (DIRECT_PORTS, map(&any)),
            (DIRECT_ADDRESS_PORTS, map(&one)),
            (MASQUERADED_PORTS, set(&any)),
            (MASQUERADED_ADDRESS_PORTS, set(&one)),
            (SUBNETS, Set::networks(address, [])),
        ]
        .map(|(name, set)| (name.to_owned(), set)),
    );
    for (name, elements) in elements(forwards.into_iter().filter(|forward| self::family(forward) == family)) {
        if let Some(set) = sets.get_mut(name) {
            set.elements.extend(elements);
        }
    }
    Table { family, name: TABLE.into(), sets, chains: chains(family) }
}

fn chains(family: Family) -> Vec<Chain> {
    let lookup = |map: &str| Action::DestinationNat { map: map.into() };
    let mark = Action::SetMark { mask: MARK, value: MARK };
    let marked = |condition, comment| rule([condition], mark.clone(), comment);
    let mut ports = Vec::new();
    if family == Family::Ip6 {
        // Closed there, instead of open to packets that the kernel drops on their way out: it has no route_localnet.
        let only = Match::Destination(IpNetwork::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        ports.push(rule([only], Action::Return, "::1 never leaves the host"));
    }
    ports.extend([
        rule([], lookup(DIRECT_ADDRESS_PORTS), "one address, sources unchanged"),
        rule([], lookup(DIRECT_PORTS), "every address, sources unchanged"),
        marked(Match::SourceIn(SUBNETS.into()), "pods would answer each other directly"),
    ]);
    ports.extend(loopback().filter(|_| family == Family::Ip).map(|network| {
        let comment = "answers to loopback addresses would not come back";
        marked(Match::Source(network), comment)
    }));
    ports.extend([
        marked(Match::DestinationIn(MASQUERADED_ADDRESS_PORTS.into()), "asked for with masqAll"),
        marked(Match::DestinationIn(MASQUERADED_PORTS.into()), "asked for with masqAll"),
        rule([], lookup(ADDRESS_PORTS), "one address"),
        rule([], lookup(PORTS), "every address"),
    ]);
    let to_us = |point| Chain {
        name: if point == HookPoint::Output { "output" } else { "prerouting" }.into(),
        hook: Some(Hook::new(HookKind::Nat, point, -100)),
        rules: vec![rule([Match::DestinationLocal], Action::Jump("ports".into()), "to an address of this host")],
    };
    let masquerade = rule(
        [Match::Mark { mask: MARK, value: MARK }, Match::DestinationIn(SUBNETS.into())],
        Action::Masquerade { fully_random: false },
        "to pods, over a port of the host",
    );
    let mut chains = vec![
        Chain { name: "ports".into(), hook: None, rules: ports },
        to_us(HookPoint::Prerouting),
        to_us(HookPoint::Output),
        // Ahead of rules for whatever leaves a pod's network.
        Chain {
            name: "postrouting".into(),
            hook: Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 99)),
            rules: vec![masquerade],
        },
    ];
    // 127.0.0.1 leads to pods only where route_localnet is on, which would also let pods speak to the host's own services
    // at 127.0.0.1 (CVE-2020-8558). Seen before anything is translated, no honest packet on a wire has such an address.
    chains.extend(loopback().filter(|_| family == Family::Ip).map(|network| {
        let wire = || Match::NotInput(Interface::Named("lo".into()));
        Chain {
            name: "martians".into(),
            hook: Some(Hook::new(HookKind::Filter, HookPoint::Prerouting, -300)),
            rules: vec![
                rule([wire(), Match::Destination(network)], Action::Drop, "loopback addresses stay on the host"),
                rule([wire(), Match::Source(network)], Action::Drop, "loopback addresses stay on the host"),
            ],
        }
    }));
    chains
}

fn loopback() -> std::option::IntoIter<IpNetwork> {
    IpNetwork::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8).ok().into_iter()
}

fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), action, comment: comment.into() }
}
