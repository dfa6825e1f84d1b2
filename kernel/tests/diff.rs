//! The difference between two states leads from one to the other, whatever they are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use ipnetwork::IpNetwork;
use kernel::netlink::RouteKind;
use kernel::{Change, Drift, Mac, Overlay, ROUTE_PROTOCOL, Route, StrayRoute, TunLink, Tunnel, VxlanLink, diff};
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use std::net::IpAddr;

/// What the kernel would do, on values.
fn carry_out(state: &mut Overlay, change: &Change) {
    let clear = |state: &mut Overlay, device: &str| {
        state.links.remove(device);
        state.drift.obstacles.remove(device);
        state.drift.down.remove(device);
        state.addresses.retain(|(dev, _)| dev != device);
        state.neighbours.retain(|(dev, _), _| dev != device);
        state.fdb.retain(|(dev, _), _| dev != device);
        state.routes.retain(|_, route| route.dev != device);
        state.drift.strays.retain(|stray| stray.dev.as_deref() != Some(device));
    };
    match change.clone() {
        Change::SetRefusal(dst, how) => assert_ne!(state.refusals.insert(dst, how), Some(how)),
        Change::DeleteRefusal(dst, how) => assert_eq!(state.refusals.remove(&dst), Some(how)),
        Change::DeleteRoute(dst, route) => assert_eq!(state.routes.remove(&dst), Some(route)),
        Change::DeleteFdb(dev, mac, dst) => assert_eq!(state.fdb.remove(&(dev, mac)), Some(dst)),
        Change::DeleteNeighbour(dev, ip) => assert!(state.neighbours.remove(&(dev, ip)).is_some()),
        Change::DeleteAddress(dev, address) => assert!(state.addresses.remove(&(dev, address))),
        Change::DeleteLink(dev) => {
            assert!(state.links.contains_key(&dev) || state.drift.obstacles.contains(&dev));
            clear(state, &dev);
        }
        Change::CreateLink(dev, link) => {
            assert!(!state.drift.obstacles.contains(&dev), "{dev} is in the way");
            assert!(state.links.insert(dev, link.with(link.mtu(), link.mac(), None)).is_none());
        }
        Change::UpdateLink(dev, update) => {
            let link = state.links.get_mut(&dev).unwrap();
            if update.mac.is_some() {
                state.neighbours.retain(|(on, _), _| *on != dev);
            }
            *link = link.with(update.mtu.unwrap_or(link.mtu()), update.mac, link.tx_checksum());
            if update.up {
                assert!(state.drift.down.remove(&dev));
            }
        }
        Change::SetTxChecksum(dev, on) => {
            let link = state.links.get_mut(&dev).unwrap();
            assert_ne!(link.tx_checksum(), Some(on));
            *link = link.with(link.mtu(), link.mac(), Some(on));
        }
        Change::AddAddress(dev, address) => assert!(state.addresses.insert((dev, address))),
        Change::SetNeighbour(dev, ip, mac) => assert_ne!(state.neighbours.insert((dev, ip), mac), Some(mac)),
        Change::SetFdb(dev, mac, dst) => assert_ne!(state.fdb.insert((dev, mac), dst), Some(dst)),
        Change::AddRoute(dst, route) => assert_eq!(state.routes.insert(dst, route), None),
        Change::ReplaceRoute(dst, route) => assert_ne!(state.routes.insert(dst, route.clone()), Some(route)),
        Change::DeleteStray(stray) => assert!(state.drift.strays.remove(&stray)),
    }
}

/// Few of everything, so that two states have much in common.
fn device() -> impl Strategy<Value = String> {
    prop_oneof![Just("flannel.1".to_owned()), Just("flannel-v6.1".to_owned())]
}

fn mac() -> impl Strategy<Value = Mac> {
    (0u8..3).prop_map(|last| Mac([2, 0, 0, 0, 0, last]))
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..3).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        (0u16..3).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])),
    ]
}

fn network() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (0u8..4).prop_map(|n| IpNetwork::new(IpAddr::from([10, 5, n, 0]), 24).unwrap()),
        (0u16..4).prop_map(|n| IpNetwork::new(IpAddr::from([0xfd00, 5, n, 0, 0, 0, 0, 0]), 64).unwrap()),
    ]
}

fn link() -> impl Strategy<Value = Tunnel> {
    prop_oneof![
        4 => vxlan().prop_map(Tunnel::Vxlan),
        1 => prop_oneof![Just(1450u32), Just(1400)].prop_map(|mtu| Tunnel::Tun(TunLink { mtu })),
    ]
}

fn vxlan() -> impl Strategy<Value = VxlanLink> {
    let mtu = prop_oneof![Just(1450u32), Just(1400)];
    (1u32..3, mac(), mtu, any::<bool>(), any::<bool>()).prop_map(|(vni, mac, mtu, learning, offload)| VxlanLink {
        vni,
        port: 8472,
        underlay: "eth0".into(),
        local: IpAddr::from([192, 0, 2, 1]),
        mac,
        mtu,
        learning,
        gbp: false,
        tx_checksum: Some(offload),
    })
}

fn route() -> impl Strategy<Value = Route> {
    let out = prop_oneof![device(), Just("eth0".to_owned())];
    (ip(), out, any::<bool>()).prop_map(|(via, dev, onlink)| Route { via: Some(via), dev, onlink })
}

fn stray() -> impl Strategy<Value = StrayRoute> {
    (network(), proptest::option::of(device()), prop_oneof![Just(3), Just(ROUTE_PROTOCOL)]).prop_map(
        |(dst, dev, protocol)| StrayRoute { dst, via: None, dev, protocol, metric: None, kind: RouteKind::Unicast },
    )
}

fn desired() -> impl Strategy<Value = Overlay> {
    (
        btree_map(device(), link(), 0..3),
        btree_set((device(), network()), 0..3),
        btree_map(network(), route(), 0..6),
        btree_map(network(), prop_oneof![Just(RouteKind::Unreachable), Just(RouteKind::Blackhole)], 0..3),
        btree_map((device(), ip()), mac(), 0..6),
        btree_map((device(), mac()), ip(), 0..6),
    )
        .prop_map(|(links, addresses, routes, refusals, neighbours, fdb)| Overlay {
            links,
            addresses,
            routes,
            refusals,
            neighbours,
            fdb,
            peers: Default::default(),
            allowed: Default::default(),
            drift: Drift::default(),
        })
}

fn actual() -> impl Strategy<Value = Overlay> {
    (desired(), btree_set(device(), 0..2), btree_set(device(), 0..2), btree_set(stray(), 0..4)).prop_map(
        |(mut state, obstacles, down, strays)| {
            // A device is one thing only, and what is observed is on devices that are there.
            for name in &obstacles {
                state.links.remove(name);
            }
            let there = |name: &String| state.links.contains_key(name);
            state.addresses.retain(|(dev, _)| there(dev));
            state.neighbours.retain(|(dev, _), _| there(dev));
            state.fdb.retain(|(dev, _), _| there(dev));
            let down = down.into_iter().filter(there).collect();
            state.drift = Drift { obstacles, down, strays };
            state
        },
    )
}

fn rank(change: &Change, desired: &Overlay) -> u8 {
    let replaced = |stray: &StrayRoute| {
        stray.protocol != ROUTE_PROTOCOL
            && desired.routes.get(&stray.dst).is_some_and(|route| Some(&route.dev) == stray.dev.as_ref())
    };
    match change {
        Change::SetRefusal(..) => 0,
        Change::DeleteStray(stray) if !replaced(stray) => 0,
        Change::DeleteRoute(..) => 1,
        Change::DeleteFdb(..) => 2,
        Change::DeleteNeighbour(..) => 3,
        Change::DeleteAddress(..) => 4,
        Change::DeleteLink(..) => 5,
        Change::CreateLink(..) => 6,
        Change::UpdateLink(..) => 7,
        Change::SetTxChecksum(..) => 8,
        Change::AddAddress(..) => 9,
        Change::SetNeighbour(..) => 10,
        Change::SetFdb(..) => 11,
        Change::AddRoute(..) | Change::ReplaceRoute(..) => 12,
        Change::DeleteStray(..) => 13,
        Change::DeleteRefusal(..) => 14,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn nothing_is_to_be_done_between_equals(state in actual()) {
        prop_assert_eq!(diff(&state, &state), vec![]);
    }

    #[test]
    fn the_changes_lead_from_one_to_the_other(actual in actual(), desired in desired()) {
        let changes = diff(&actual, &desired);
        let mut state = actual;
        for change in &changes {
            carry_out(&mut state, change);
        }
        prop_assert_eq!(&state, &desired);
        prop_assert!(changes.is_sorted_by_key(|change| rank(change, &desired)), "{:?}", changes);
    }

    #[test]
    fn giving_way_keeps_what_there_is_and_adds_what_is_missing(actual in actual(), wanted in desired()) {
        let mut desired = wanted.clone();
        desired.give_way_to(&actual);
        let mut state = actual.clone();
        let changes = diff(&actual, &desired);
        for change in &changes {
            carry_out(&mut state, change);
        }
        let is_deleted = |device: &str| changes.contains(&Change::DeleteLink(device.to_owned()));
        let stays = |device: &str| wanted.links.contains_key(device) || !actual.links.contains_key(device);
        for (dst, route) in actual.routes.iter().filter(|(_, route)| stays(&route.dev)) {
            prop_assert_eq!(state.routes.get(dst), Some(route));
        }
        for (key, dst) in actual.fdb.iter().filter(|(key, _)| stays(&key.0)) {
            prop_assert_eq!(state.fdb.get(key), Some(dst));
        }
        for (key, mac) in actual.neighbours.iter().filter(|(key, _)| stays(&key.0)) {
            prop_assert_eq!(state.neighbours.get(key), Some(mac));
        }
        for stray in &actual.drift.strays {
            let kept = state.drift.strays.contains(stray) || stray.dev.as_deref().is_some_and(is_deleted);
            prop_assert!(kept || state.routes.contains_key(&stray.dst), "{:?}", stray);
        }
        prop_assert!(wanted.routes.keys().all(|dst| state.routes.contains_key(dst)));
        prop_assert!(wanted.fdb.keys().all(|key| state.fdb.contains_key(key)));
        prop_assert!(wanted.neighbours.keys().all(|key| state.neighbours.contains_key(key)));
        prop_assert_eq!(&state.links, &wanted.links);
    }
}
