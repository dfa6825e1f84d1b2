//! What is broken heals.

use crate::stage::{Family, desired, index, node, reconcile, scope, vxlan};
use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteKind, RouteSpec};
use kernel::{Mac, REFUSAL_METRIC, ROUTE_PROTOCOL, VxlanLink, apply, diff, is_intact, observe};
use std::net::Ipv4Addr;

#[test]
fn what_others_break_heals() {
    let (mut node, desired) = (node(), desired(3));
    reconcile(&mut node, &desired);
    for family in [Family::V4, Family::V6] {
        let name = family.device();

        node.netlink.delete_link(name).unwrap();
        assert!(reconcile(&mut node, &desired) >= 11, "the device and everything on it");

        let on = node.netlink.tx_checksum(name).unwrap().unwrap();
        node.netlink.set_tx_checksum(name, !on).unwrap();
        assert_eq!(reconcile(&mut node, &desired), 1, "checksum offload");
        assert_eq!(node.netlink.tx_checksum(name).unwrap(), Some(on));

        for change in [
            LinkChange { up: Some(false), ..LinkChange::default() },
            LinkChange { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..LinkChange::default() },
            LinkChange { mtu: Some(1300), ..LinkChange::default() },
        ] {
            let device = index(&mut node, name);
            node.netlink.set_link(device, &change).unwrap();
            assert!(reconcile(&mut node, &desired) > 0, "{change:?}");
        }

        let device = index(&mut node, name);
        let subnet = family.subnet(1);
        let route = RouteSpec { dst: subnet, protocol: 0, ..RouteSpec::default() };
        assert!(node.netlink.delete_route(&route).unwrap());
        assert!(node.netlink.delete_neighbour(device, family.subnet(2).network()).unwrap());
        let mac = Mac::derive(&format!("{name} 3"));
        assert!(node.netlink.delete_fdb(device, mac, family.remote(3)).unwrap());
        assert!(node.netlink.delete_address(device, IpNetwork::from(family.subnet(0).network())).unwrap());
        assert!(reconcile(&mut node, &desired) >= 4);

        node.netlink.set_neighbour(device, family.subnet(9).network(), mac).unwrap();
        node.netlink.set_neighbour(device, family.subnet(2).network(), mac).unwrap();
        node.netlink.set_fdb(device, mac, family.remote(8)).unwrap();
        node.netlink.set_fdb(device, Mac([2, 0, 0, 0, 0, 7]), family.remote(7)).unwrap();
        node.netlink.add_address(device, IpNetwork::from(family.subnet(7).network())).unwrap();
        let elsewhere = RouteSpec { via: Some(family.subnet(2).network()), dev: Some(device), onlink: true, ..route };
        node.netlink.replace_route(&RouteSpec { protocol: ROUTE_PROTOCOL, ..elsewhere }).unwrap();
        assert!(reconcile(&mut node, &desired) >= 6);
    }
}

#[test]
fn a_single_entry_that_is_gone_changed_or_too_much_is_noticed() {
    let (mut node, desired) = (node(), desired(3));
    reconcile(&mut node, &desired);
    for family in [Family::V4, Family::V6] {
        let device = index(&mut node, family.device());
        let (subnet, remote, another) = (family.subnet(1), family.remote(1), Mac([2, 0, 0, 0, 0, 7]));
        let mac = Mac::derive(&format!("{} 1", family.device()));
        let route = RouteSpec { dst: subnet, via: Some(subnet.network()), dev: Some(device), ..RouteSpec::default() };
        let (marked, onlink) = (RouteSpec { protocol: 0, ..route.clone() }, RouteSpec { onlink: true, ..route });
        let other = RouteSpec { via: Some(family.subnet(2).network()), ..onlink.clone() };
        let strange = RouteSpec { dst: family.subnet(9), ..onlink };
        let refusal = RouteSpec {
            dst: family.subnet(0),
            kind: RouteKind::Unreachable,
            metric: Some(REFUSAL_METRIC),
            ..RouteSpec::default()
        };
        let mut damage = |doing: &str, break_it: &dyn Fn(&mut Netlink)| {
            break_it(&mut node.netlink);
            assert!(!is_intact(&mut node.netlink, &scope(), &desired).unwrap(), "{doing}");
            assert_eq!(reconcile(&mut node, &desired), 1, "{doing}");
        };
        damage("route gone", &|netlink| assert!(netlink.delete_route(&marked).unwrap()));
        damage("route changed", &|netlink| netlink.replace_route(&other).unwrap());
        damage("route too many", &|netlink| netlink.add_route(&strange).unwrap());
        damage("refusal too many", &|netlink| netlink.add_route(&refusal).unwrap());
        damage("neighbour gone", &|netlink| assert!(netlink.delete_neighbour(device, subnet.network()).unwrap()));
        damage("neighbour changed", &|netlink| netlink.set_neighbour(device, subnet.network(), another).unwrap());
        damage("neighbour too many", &|netlink| netlink.set_neighbour(device, remote, mac).unwrap());
        damage("forwarding entry gone", &|netlink| assert!(netlink.delete_fdb(device, mac, remote).unwrap()));
        damage("forwarding entry changed", &|netlink| netlink.set_fdb(device, mac, family.remote(2)).unwrap());
        damage("forwarding entry too many", &|netlink| netlink.set_fdb(device, another, remote).unwrap());
        damage("address too many", &|netlink| netlink.add_address(device, IpNetwork::from(remote)).unwrap());
    }
    // What the kernel found out by itself is no part of it.
    let device = index(&mut node, "flannel.1");
    node.netlink.introduce_neighbour(device, Family::V4.remote(5), Mac([2, 0, 0, 0, 0, 9])).unwrap();
    assert!(is_intact(&mut node.netlink, &scope(), &desired).unwrap());
}

#[test]
fn who_does_not_care_for_the_checksum_offload_leaves_it_alone() {
    let mut node = node();
    let mut careless = desired(1);
    for link in careless.links.values_mut() {
        *link = link.with(link.mtu(), link.mac(), None);
    }
    for on in [true, false] {
        let changes = diff(&observe(&mut node.netlink, &scope()).unwrap(), &careless);
        assert_eq!(apply(&mut node.netlink, &changes), []);
        node.netlink.set_tx_checksum("flannel.1", on).unwrap();
        let seen = observe(&mut node.netlink, &scope()).unwrap();
        assert_eq!(seen.links["flannel.1"].tx_checksum(), Some(on));
        assert_eq!(diff(&seen, &careless), []);
        assert!(is_intact(&mut node.netlink, &scope(), &careless).unwrap());
    }
}

#[test]
fn the_underlay_going_down_and_up_loses_nothing_for_long() {
    let (mut node, desired) = (node(), desired(2));
    reconcile(&mut node, &desired);
    for up in [false, true] {
        node.netlink.set_link(node.uplink, &LinkChange { up: Some(up), ..LinkChange::default() }).unwrap();
    }
    reconcile(&mut node, &desired);
}

#[test]
fn a_device_that_was_made_otherwise_is_made_anew() {
    let desired = desired(2);
    let others = [
        VxlanLink { vni: 7, ..vxlan(Family::V4) },
        VxlanLink { port: 4789, ..vxlan(Family::V4) },
        VxlanLink { local: Ipv4Addr::new(192, 0, 2, 9).into(), ..vxlan(Family::V4) },
        VxlanLink { learning: true, ..vxlan(Family::V4) },
        VxlanLink { gbp: true, ..vxlan(Family::V4) },
    ];
    for other in others {
        let mut node = node();
        node.netlink.create_vxlan("flannel.1", &other, "").unwrap();
        let before = index(&mut node, "flannel.1");
        reconcile(&mut node, &desired);
        assert_ne!(index(&mut node, "flannel.1"), before, "{other:?}");
    }
    let mut node = node();
    node.netlink.create_bridge("flannel.1", Mac::derive("obstacle"), None, "").unwrap();
    reconcile(&mut node, &desired);
}

#[test]
fn marked_routes_that_are_not_as_they_should_be_are_put_right() {
    let (mut node, desired) = (node(), desired(2));
    reconcile(&mut node, &desired);
    let device = index(&mut node, "flannel.1");
    let dst = Family::V4.subnet(1);
    let twin = RouteSpec { dst, dev: Some(device), metric: Some(50), ..RouteSpec::default() };
    node.netlink.add_route(&twin).unwrap();
    let stale =
        RouteSpec { dst: "10.99.0.0/24".parse().unwrap(), kind: kernel::netlink::RouteKind::Blackhole, ..twin.clone() };
    node.netlink.add_route(&RouteSpec { dev: None, ..stale }).unwrap();
    node.netlink
        .replace_route(&RouteSpec {
            dst: Family::V4.subnet(2),
            mtu: Some(1000),
            dev: Some(device),
            ..Default::default()
        })
        .unwrap();
    assert_eq!(reconcile(&mut node, &desired), 4);
}
