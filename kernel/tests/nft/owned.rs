//! Tables that many share, with elements that say whose they are.

use crate::sample::{address, network, rule};
use crate::{fresh, nft};
use kernel::nft::*;
use std::collections::{BTreeMap, BTreeSet};

/// Addresses, and pairs of devices.
fn shared() -> Table {
    let devices = Set { key: vec![Field::InputDevice, Field::OutputDevice], ..Set::default() };
    Table {
        family: Family::Inet,
        name: "shared".into(),
        sets: BTreeMap::from([("devices".into(), devices), ("pods".into(), Set::addresses(Field::Ipv4Address, []))]),
        chains: vec![Chain {
            name: "forward".into(),
            hook: Some(Hook::new(HookKind::Filter, HookPoint::Forward, 0)),
            rules: vec![
                rule([Match::SourceIn("pods".into())], Action::Accept, "from pods"),
                rule([Match::SourceIn("devices".into())], Action::Drop, "across"),
            ],
        }],
    }
}

fn pod(text: &str, owner: &str) -> Element {
    Element::from(address(text)).commented(owner)
}

#[test]
fn the_first_makes_the_table_and_the_others_leave_it() {
    let namespace = fresh();
    let mut connection = Nft::open_in(&namespace).unwrap();
    assert!(connection.create(&shared()).unwrap());
    connection.put_elements(&shared(), &[("pods", &[pod("10.0.0.1", "a/eth0")])], &[]).unwrap();
    assert!(!connection.create(&shared()).unwrap());
    assert_eq!(connection.elements(&shared(), "pods").unwrap(), [pod("10.0.0.1", "a/eth0")]);
    let mut whole = shared();
    whole.sets.get_mut("pods").unwrap().elements = BTreeSet::from([pod("10.0.0.1", "a/eth0")]);
    assert!(connection.is_intact(&whole).unwrap());
    assert!(connection.has_frame(&shared()).unwrap());
    nft(&namespace, &["flush", "chain", "inet", "shared", "forward"], "");
    assert!(!connection.has_frame(&shared()).unwrap());
}

#[test]
fn an_element_says_whose_it_is_and_can_change_hands() {
    let namespace = fresh();
    let mut connection = Nft::open_in(&namespace).unwrap();
    assert_eq!(connection.element(&shared(), "pods", &pod("10.0.0.1", "")).unwrap(), None);
    assert_eq!(connection.elements(&shared(), "pods").unwrap(), []);
    connection.create(&shared()).unwrap();
    assert_eq!(connection.element(&shared(), "pods", &pod("10.0.0.1", "")).unwrap(), None);
    for owner in ["a/eth0", "b/eth0", "b/eth0"] {
        let both = [pod("10.0.0.1", owner), pod("10.0.0.2", owner)];
        connection.put_elements(&shared(), &[("pods", &both)], &[]).unwrap();
        assert_eq!(connection.element(&shared(), "pods", &pod("10.0.0.1", "")).unwrap(), Some(pod("10.0.0.1", owner)));
        assert_eq!(connection.elements(&shared(), "pods").unwrap(), both);
    }
    let listing = nft(&namespace, &["list", "set", "inet", "shared", "pods"], "");
    assert!(listing.contains("10.0.0.1 comment \"b/eth0\""), "{listing}");
    connection.remove_elements(&shared(), "pods", &[pod("10.0.0.1", "whoever")]).unwrap();
    connection.close();
    let mut connection = Nft::open_in(&namespace).unwrap();
    assert_eq!(connection.elements(&shared(), "pods").unwrap(), [pod("10.0.0.2", "b/eth0")]);
    let long = pod("10.0.0.3", &"x".repeat(128));
    assert!(connection.put_elements(&shared(), &[("pods", &[long])], &[]).is_err());
}

#[test]
fn devices_are_elements() {
    let namespace = fresh();
    let mut connection = Nft::open_in(&namespace).unwrap();
    connection.create(&shared()).unwrap();
    let pair = Element::entry([Value::device("cni0").unwrap(), Value::device("fifteen-letters").unwrap()], []);
    // Common to all: whoever comes next leaves it as it is.
    for owner in ["a/eth0", "b/eth0"] {
        let pods = [pod("10.0.0.1", owner)];
        let common = std::slice::from_ref(&pair);
        connection.put_elements(&shared(), &[("pods", &pods)], &[("devices", common)]).unwrap();
        assert_eq!(connection.elements(&shared(), "pods").unwrap(), pods);
    }
    assert_eq!(connection.elements(&shared(), "devices").unwrap(), [pair]);
    assert_eq!(Value::device("sixteen-letters!"), None);
    assert_eq!(Value::device(""), None);
    let listing = nft(&namespace, &["list", "table", "inet", "shared"], "");
    assert!(listing.contains("\"cni0\" . \"fifteen-letters\""), "{listing}");
    assert!(listing.contains("iifname . oifname @devices drop"), "{listing}");
}

#[test]
fn prefixes_change_in_one_step() {
    let with = |prefixes: &[&str]| Table {
        sets: BTreeMap::from([("own".into(), Set::networks(Field::Ipv4Address, prefixes.iter().map(|p| network(p))))]),
        ..Table { name: "networks".into(), family: Family::Inet, ..Table::default() }
    };
    let namespace = fresh();
    let mut connection = Nft::open_in(&namespace).unwrap();
    assert_eq!(connection.compare_prefixes(&with(&["10.0.0.0/8"]), "own").unwrap(), Extent::Otherwise);
    assert_eq!(connection.replace_prefixes(&with(&[]), "own").unwrap_err().errno, nix::errno::Errno::ENOENT);
    connection.create(&with(&["10.0.0.0/16", "10.255.0.0/16"])).unwrap();
    for (prefixes, extent) in [
        (&["10.0.0.0/16", "10.255.0.0/16"][..], Extent::Exactly),
        (&["10.255.0.0/16", "10.0.7.0/16", "10.0.9.0/24"], Extent::Exactly),
        (&["10.0.0.0/16"], Extent::More),
        (&[], Extent::More),
        (&["10.0.0.0/8"], Extent::Otherwise),
        (&["10.0.0.0/24"], Extent::Otherwise),
        (&["10.1.0.0/16"], Extent::Otherwise),
    ] {
        assert_eq!(connection.compare_prefixes(&with(prefixes), "own").unwrap(), extent, "{prefixes:?}");
    }
    for prefixes in [&["10.0.0.0/8"][..], &["10.5.0.0/16", "255.0.0.0/8"], &["0.0.0.0/0"], &[], &["10.5.0.0/16"]] {
        connection.replace_prefixes(&with(prefixes), "own").unwrap();
        assert_eq!(connection.compare_prefixes(&with(prefixes), "own").unwrap(), Extent::Exactly, "{prefixes:?}");
    }
    let listing = nft(&namespace, &["list", "set", "inet", "networks", "own"], "");
    assert!(listing.contains("elements = { 10.5.0.0/16 }"), "{listing}");
}
