//! What is broken heals.

use crate::stage::{Family, desired, index, node, reconcile, scope, vxlan};
use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, RouteSpec};
use kernel::{Mac, ROUTE_PROTOCOL, VxlanLink, apply, diff, observe};
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
