//! The rules as people read them: golden files of nft's own language. What the kernel makes of it is tested in `kernel`, and
//! what packets make of it in `e2e`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::firewall::{Node, Policy, Switch, tables};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn networks(texts: &[&str]) -> PerFamily<IpNetwork> {
    let parsed = texts.iter().map(|text| text.parse::<IpNetwork>().unwrap());
    parsed.map(|network| (Family::of(network.ip()), network)).collect()
}

fn all() -> Policy {
    Policy {
        masquerade: Switch::ON,
        fully_random: true,
        not_masqueraded: BTreeSet::new(),
        forward: Switch::ON,
        refuse_own: false,
    }
}

const DUAL: [&str; 2] = ["10.5.0.0/16", "fd00:5::/48"];

fn text(policy: &Policy, cluster: &[&str], tunnels: &[(&str, u16)]) -> String {
    let (networks, own) = (networks(cluster), networks(&["10.5.1.0/24", "fd00:5:0:1::/64"]));
    let tunnels = tunnels.iter().map(|(local, port)| (local.parse::<IpAddr>().unwrap(), *port)).collect();
    let node = Node { networks: &networks, own: &own, tunnels: &tunnels };
    tables(policy, &node).iter().map(ToString::to_string).collect()
}

#[test]
fn rules_are_as_in_the_golden_files() {
    let v4 = &DUAL[..1];
    let tunnels = [("192.0.2.1", 8472), ("2001:db8::1", 8472)];
    let known = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"];
    let direct = Policy { not_masqueraded: known.map(|text| text.parse().unwrap()).into(), ..all() };
    let split = Policy { masquerade: Switch::only(Family::V6), forward: Switch::only(Family::V4), ..all() };
    for (name, policy, cluster, tunnels) in [
        ("dual-stack", all(), &DUAL[..], &[][..]),
        ("forward-only", Policy { masquerade: Switch::OFF, ..all() }, v4, &[]),
        ("plain-ports", Policy { fully_random: false, forward: Switch::OFF, ..all() }, v4, &[]),
        ("not-masqueraded", direct, &DUAL, &tunnels),
        ("one-family-each", split, &DUAL, &[]),
    ] {
        let path = format!("{}/tests/golden/firewall-{name}.nft", env!("CARGO_MANIFEST_DIR"));
        let text = text(&policy, cluster, tunnels);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}: make golden writes it anew");
    }
}

#[test]
fn nothing_wanted_is_no_table() {
    let nothing = Policy { masquerade: Switch::OFF, forward: Switch::OFF, ..all() };
    assert_eq!(text(&nothing, &DUAL[..1], &[]), "");
}
