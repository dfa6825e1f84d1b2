//! The short way to a new state of the leases leads where the long one does, whatever the peers claim.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Means, Node};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::lease::{Announcement, Endpoint, Lease, LeaseTable, Subnets};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

const CASES: u32 = 1000;

fn per_family<T: std::str::FromStr<Err: std::fmt::Debug>>(v4: &str, v6: &str) -> PerFamily<T> {
    let parsed = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
    PerFamily { v4: parsed(v4), v6: parsed(v6) }
}

fn uplink() -> Uplink {
    let way = |address: IpNetwork| {
        let (local, interface) = (address.ip(), "eth0".into());
        Way {
            interface,
            mtu: 1500,
            local,
            public: local,
            translated: false,
            on_link: vec![address],
            drivers: Default::default(),
        }
    };
    Uplink { ways: per_family("192.168.0.1/24", "2001:db8::1/64").map(|_, address| way(*address)) }
}

/// Few of each, so that peers often claim the same subnet, gateway, MAC address or public address, and some are odd.
fn lease() -> impl Strategy<Value = Lease> {
    let v4 = prop_oneof![Just(""), Just("10.5.2.0/24"), Just("10.5.2.0/25"), Just("10.5.3.0/24"), Just("10.5.4.0/24")];
    let v6 = prop_oneof![Just(""), Just("fd00:5:2::/64"), Just("fd00:5:3::/64")];
    let some = (v4, v6).prop_filter("a lease has a subnet", |(v4, v6)| !(v4.is_empty() && v6.is_empty()));
    let kind = prop_oneof![9 => Just("vxlan"), 1 => Just("host-gw")];
    let data = prop_oneof![
        6 => (0u8..5).prop_map(|number| format!(r#"{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:{number:02x}"}}"#)),
        1 => Just("{}".to_owned())
    ];
    (some, kind, 2u8..7, any::<[bool; 2]>(), data).prop_map(|((v4, v6), kind, node, far, data)| {
        let third = |far: bool| if far { 7 } else { 0 };
        let public_v4 = format!("192.168.{}.{node}", third(far[0]));
        let public_v6 = format!("2001:db8:{}::{node}", third(far[1]));
        let endpoints = per_family::<std::net::IpAddr>(&public_v4, &public_v6);
        let endpoint = |_: Family, ip: &std::net::IpAddr| Endpoint { public_ip: *ip, data: Some(data.clone()) };
        let announcement = Announcement { backend_type: kind.into(), endpoints: endpoints.map(endpoint) };
        Lease { subnets: per_family(v4, v6), announcement }
    })
}

/// Two states of a store, of which the second has much of the first.
fn tables() -> impl Strategy<Value = (LeaseTable, LeaseTable)> {
    (vec(lease(), 0..6), vec(lease(), 0..3), any::<u8>()).prop_map(|(before, new, kept)| {
        let stays = |(number, _): &(usize, &Lease)| *number == 0 || kept >> number & 1 == 1;
        let after = before.iter().enumerate().filter(stays).map(|(_, lease)| lease.clone()).chain(new).collect();
        (before.into_iter().collect(), after)
    })
}

fn the_short_way_is_as_good(backend: &str) {
    let config = format!(r#"{{"Network": "10.5.0.0/16", "Backend": {backend}}}"#);
    let backend = Backend::new(&NetworkConfig::parse(&config).unwrap(), Means::default()).unwrap();
    let networks: PerFamily<IpNetwork> = per_family("10.5.0.0/16", "fd00:5::/32");
    let subnets: Subnets = per_family("10.5.1.0/24", "fd00:5:1::/64");
    let own = Lease { subnets, announcement: backend.announcement(&uplink(), &Family::ALL) };
    let node = Node { networks: &networks, uplink: &uplink(), own: &own };
    let short = AtomicUsize::new(0);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) };
    proptest!(config, |((before, after) in tables())| {
        let (gone, new) = before.changes_to(&after);
        let (gone, new) = (backend.peers(&node, &gone), backend.peers(&node, &new));
        let (old, whole) = (backend.desired(&node, &before), backend.desired(&node, &after));
        if let Some(exchanged) = old.clone().exchange(&gone, &new) {
            prop_assert_eq!(&exchanged, &whole);
            let (long, short_changes) =
                (kernel::diff(&old.overlay, &whole.overlay), kernel::diff(&gone.overlay, &new.overlay));
            prop_assert_eq!(long, short_changes);
            short.fetch_add(1, Ordering::Relaxed);
        }
    });
    let taken = short.into_inner();
    assert!(taken > CASES as usize / 4, "the short way was open {taken} times only");
}

#[test]
fn vxlan() {
    the_short_way_is_as_good(r#"{"Type": "vxlan"}"#);
}

#[test]
fn vxlan_with_direct_routing() {
    the_short_way_is_as_good(r#"{"Type": "vxlan", "DirectRouting": true}"#);
}

#[test]
fn host_gw() {
    the_short_way_is_as_good(r#"{"Type": "host-gw"}"#);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn the_changes_between_two_tables_make_one_the_other((before, after) in tables()) {
        let (gone, new) = before.changes_to(&after);
        let mut table = before.clone();
        for lease in gone.iter() {
            let removed = table.remove(&lease.subnets);
            prop_assert_eq!(removed.as_deref(), Some(lease));
        }
        for lease in new.iter() {
            prop_assert!(table.insert(lease.clone()).is_none());
        }
        prop_assert_eq!(&table, &after);
        for lease in gone.iter() {
            prop_assert_ne!(after.get(&lease.subnets), Some(lease), "unchanged");
        }
    }
}
