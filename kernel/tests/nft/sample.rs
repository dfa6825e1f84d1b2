//! Tables to try things with.

use ipnetwork::IpNetwork;
use kernel::nft::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), action, comment: comment.into() }
}

/// The daemon's masquerade and forward rules, for one family.
pub(crate) fn masquerade(family: Family, cluster: &str, own: &str, multicast: &str) -> Table {
    let (cluster, own, multicast) = (network(cluster), network(own), network(multicast));
    let nat = Action::Masquerade { fully_random: true };
    Table {
        family,
        name: "flanneld-rs".into(),
        chains: vec![
            Chain {
                name: "forward".into(),
                hook: Some(Hook::new(HookKind::Filter, HookPoint::Forward, 0)),
                rules: vec![
                    rule([Match::Source(cluster)], Action::Accept, "from pods"),
                    rule([Match::Destination(cluster)], Action::Accept, "to pods"),
                ],
            },
            Chain {
                name: "postrouting".into(),
                hook: Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 100)),
                rules: vec![
                    rule([Match::Mark { mask: 0x4000, value: 0x4000 }], Action::Return, "kube-proxy masquerades it"),
                    rule([Match::Source(cluster), Match::Destination(cluster)], Action::Return, "pod to pod"),
                    rule([Match::NotSource(cluster), Match::Destination(own)], Action::Return, "outside to our pods"),
                    rule([Match::Source(cluster), Match::NotDestination(multicast)], nat.clone(), "pod to outside"),
                    rule([Match::NotSource(cluster), Match::Destination(cluster)], nat, "outside to other nodes' pods"),
                ],
            },
        ],
        ..Table::default()
    }
}

pub(crate) fn masquerade_ipv4() -> Table {
    masquerade(Family::Ip, "10.244.0.0/16", "10.244.3.0/24", "224.0.0.0/4")
}

pub(crate) fn masquerade_ipv6() -> Table {
    masquerade(Family::Ip6, "fd00:10:244::/48", "fd00:10:244:3::/64", "ff00::/8")
}

/// Ports of bridges, each with the one address that it may send from.
pub(crate) fn bridge_ports() -> Table {
    let port = Value::device("veth0").unwrap();
    let mac = Value::Mac(kernel::Mac([2, 0, 0, 0, 0, 1]));
    let set = |key: &[Field], element| Set::map(key, [], BTreeSet::from([Element::entry(element, [])]));
    let spoofed = [Match::SourceIn("guarded".into()), Match::SourceNotIn("own".into())];
    Table {
        family: Family::Bridge,
        name: "guard".into(),
        sets: BTreeMap::from([
            ("guarded".into(), set(&[Field::InputDevice], vec![port])),
            ("own".into(), set(&[Field::InputDevice, Field::SourceMac], vec![port, mac])),
        ]),
        chains: vec![Chain {
            name: "prerouting".into(),
            hook: Some(Hook::new(HookKind::Filter, HookPoint::Prerouting, -300)),
            rules: vec![rule(spoofed, Action::Drop, "not its address")],
        }],
    }
}

/// Ports of the host that lead to pods, as maps.
pub(crate) fn host_ports() -> Table {
    let port = |protocol, port: u16| vec![Value::Protocol(protocol), Value::Port(port)];
    let pod = |text: &str, port: u16| vec![address(text).into(), Value::Port(port)];
    let on_every_address = BTreeSet::from([
        Element::entry(port(Protocol::Tcp, 8080), pod("10.244.3.7", 80)),
        Element::entry(port(Protocol::Udp, 53), pod("10.244.3.8", 5353)),
    ]);
    let on_one = BTreeSet::from([Element::entry(
        [address("192.168.1.4").into(), Value::Protocol(Protocol::Tcp), Value::Port(443)],
        pod("10.244.3.9", 8443),
    )]);
    let destination = |map: &str| Action::DestinationNat { map: map.into() };
    let leads = [Field::Ipv4Address, Field::Port];
    let local = [Match::DestinationLocal];
    Table {
        name: "host-ports".into(),
        sets: BTreeMap::from([
            ("ports".into(), Set::map([Field::Protocol, Field::Port], leads, on_every_address)),
            ("address_ports".into(), Set::map([Field::Ipv4Address, Field::Protocol, Field::Port], leads, on_one)),
        ]),
        chains: vec![
            Chain {
                name: "lookup".into(),
                hook: None,
                rules: vec![rule([], destination("address_ports"), ""), rule([], destination("ports"), "any address")],
            },
            Chain {
                name: "prerouting".into(),
                hook: Some(Hook::new(HookKind::Nat, HookPoint::Prerouting, -100)),
                rules: vec![rule(local.clone(), Action::Jump("lookup".into()), "to this host")],
            },
            Chain {
                name: "output".into(),
                hook: Some(Hook::new(HookKind::Nat, HookPoint::Output, -100)),
                rules: vec![rule(local, Action::Jump("lookup".into()), "from this host")],
            },
        ],
        ..Table::default()
    }
}

/// Every match and every action, in a table of both families.
pub(crate) fn everything() -> Table {
    let named = |name: &str| Interface::Named(name.into());
    let states = BTreeSet::from([ConntrackState::Established, ConntrackState::Related]);
    let policy = Policy::Drop;
    let forward = Hook { policy, ..Hook::new(HookKind::Filter, HookPoint::Forward, -5) };
    let set_mark = |mask, value| Action::SetMark { mask, value };
    Table {
        family: Family::Inet,
        name: "everything".into(),
        sets: BTreeMap::from([
            ("hosts".into(), Set::addresses(Field::Ipv4Address, [address("10.0.0.1"), address("10.0.0.2")])),
            ("hosts6".into(), Set::addresses(Field::Ipv6Address, [address("fd00::1")])),
            ("nets".into(), Set::networks(Field::Ipv4Address, ["10.0.0.0/8", "192.168.7.0/24"].map(network))),
            ("nets6".into(), Set::networks(Field::Ipv6Address, ["fd00::/8", "2001:db8::/33"].map(network))),
            ("empty".into(), Set::networks(Field::Ipv4Address, [])),
            (
                "ports".into(),
                Set {
                    key: vec![Field::Port],
                    elements: BTreeSet::from([Element::entry([Value::Port(80)], [])]),
                    ..Set::default()
                },
            ),
        ]),
        chains: vec![
            Chain { name: "elsewhere".into(), hook: None, rules: vec![rule([], Action::Counter, "counted")] },
            Chain {
                name: "forward".into(),
                hook: Some(forward),
                rules: vec![
                    rule([Match::Conntrack(states)], Action::Accept, "replies"),
                    rule([Match::Conntrack(BTreeSet::from([ConntrackState::Invalid]))], Action::Drop, ""),
                    rule([Match::Source(network("10.1.2.3/32"))], Action::Jump("elsewhere".into()), "one address"),
                    rule([Match::NotSource(network("10.128.0.0/9"))], Action::Accept, "odd length"),
                    rule(
                        [Match::Source(network("fd00::/8")), Match::NotDestination(network("fd00::1/128"))],
                        Action::Drop,
                        "",
                    ),
                    rule(
                        [Match::SourceIn("hosts".into()), Match::DestinationNotIn("nets".into())],
                        Action::Accept,
                        "sets",
                    ),
                    rule([Match::SourceNotIn("hosts6".into()), Match::DestinationIn("nets6".into())], Action::Drop, ""),
                    rule(
                        [Match::Protocol(Protocol::Udp), Match::DestinationIn("ports".into())],
                        Action::Accept,
                        "ports",
                    ),
                    rule([Match::Input(named("cbr0")), Match::NotOutput(named("cbr0"))], Action::Return, "leaving"),
                    rule(
                        [Match::Output(Interface::Prefix("veth".into())), Match::NotInput(named("lo"))],
                        Action::Accept,
                        "",
                    ),
                    rule([Match::Mark { mask: u32::MAX, value: 7 }], Action::Accept, "whole mark"),
                    rule([Match::NotMark { mask: 0xff00, value: 0x100 }], set_mark(0xff00, 0x100), "some bits"),
                    rule([Match::Protocol(Protocol::Icmpv6)], Action::Accept, ""),
                    rule([Match::DestinationPort(Protocol::Tcp, 443)], Action::Drop, "one port"),
                    rule([Match::Family(Family::Ip6), Match::DestinationLocal], Action::Accept, "to us"),
                ],
            },
            Chain {
                name: "postrouting".into(),
                hook: Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 99)),
                rules: vec![rule(
                    [Match::Source(network("10.0.0.0/8"))],
                    Action::Masquerade { fully_random: false },
                    "",
                )],
            },
            Chain {
                name: "output".into(),
                hook: Some(Hook::new(HookKind::Route, HookPoint::Output, -150)),
                rules: vec![rule([], set_mark(u32::MAX, 9), "all bits")],
            },
        ],
    }
}
