//! What others have made, and what cannot be made.

use crate::stage::{BOOT, Family, KERNEL, LINK, desired, index, node, reconcile, scope, vxlan};
use kernel::netlink::RouteSpec;
use kernel::{Change, Mac, Overlay, ROUTE_PROTOCOL, Route, Tunnel, VxlanLink, apply, diff, observe};
use nix::errno::Errno;
use std::net::{Ipv4Addr, Ipv6Addr};

#[test]
fn the_device_of_a_predecessor_is_kept_and_its_routes_are_taken_over() {
    let (mut node, desired) = (node(), desired(2));
    // As Go flannel leaves it: another MAC and no mark.
    for family in [Family::V4, Family::V6] {
        let link = VxlanLink { mac: Mac([0x5e, 1, 2, 3, 4, 5]), ..vxlan(family) };
        node.netlink.create_vxlan(family.device(), &link, "").unwrap();
        let device = index(&mut node, family.device());
        for peer in [1, 9] {
            let subnet = family.subnet(peer);
            let route = RouteSpec {
                dst: subnet,
                via: Some(subnet.network()),
                dev: Some(device),
                onlink: true,
                protocol: BOOT,
                ..RouteSpec::default()
            };
            node.netlink.add_route(&route).unwrap();
        }
        // Its host-gw back end, and the same destination twice.
        for (peer, metric) in [(8, None), (1, Some(7)), (2, Some(9))] {
            let via = match family {
                Family::V4 => Ipv4Addr::new(192, 0, 2, 77).into(),
                Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 77).into(),
            };
            let route = RouteSpec {
                dst: family.subnet(peer),
                via: Some(via),
                dev: Some(node.uplink),
                protocol: BOOT,
                metric,
                ..RouteSpec::default()
            };
            node.netlink.add_route(&route).unwrap();
        }
    }
    let before = index(&mut node, "flannel.1");
    reconcile(&mut node, &desired);
    assert_eq!(index(&mut node, "flannel.1"), before);
    for family in [Family::V4, Family::V6] {
        let routes = node.netlink.routes().unwrap();
        let to = |peer| routes.iter().filter(|route| route.dst == family.subnet(peer)).collect::<Vec<_>>();
        for peer in [1, 2] {
            let [route] = to(peer)[..] else { panic!("{:?}", to(peer)) };
            assert_eq!(route.protocol, ROUTE_PROTOCOL);
        }
        assert_eq!((to(8), to(9)), (vec![], vec![]));
    }
}

#[test]
fn what_is_not_ours_stays() {
    let mut node = node();
    let foreign = RouteSpec {
        dst: "172.16.0.0/16".parse().unwrap(),
        via: Some(Ipv4Addr::new(192, 0, 2, 9).into()),
        dev: Some(node.uplink),
        protocol: BOOT,
        ..RouteSpec::default()
    };
    node.netlink.add_route(&foreign).unwrap();
    reconcile(&mut node, &desired(1));
    reconcile(&mut node, &Overlay::default());
    assert!(node.netlink.routes().unwrap().iter().any(|route| route.dst == foreign.dst));
    assert!(node.netlink.addresses().unwrap().iter().any(|(device, _)| *device == node.uplink));
}

#[test]
fn somebody_elses_route_to_a_peers_subnet_is_told_and_left_alone() {
    let (mut node, desired) = (node(), desired(2));
    let (taken, wanted) = desired.routes.iter().find(|(dst, _)| dst.is_ipv4()).unwrap();
    let foreign =
        RouteSpec { dst: *taken, dev: Some(node.uplink), protocol: KERNEL, scope: Some(LINK), ..RouteSpec::default() };
    node.netlink.add_route(&foreign).unwrap();
    let changes = diff(&observe(&mut node.netlink, &scope()).unwrap(), &desired);
    let failures = apply(&mut node.netlink, &changes);
    let [failure] = &failures[..] else { panic!("{failures:?}") };
    assert_eq!(failure.errno, Errno::EEXIST);
    assert!(failure.to_string().contains("somebody else's route"), "{failure}");
    let routes = node.netlink.routes().unwrap();
    let kept: Vec<_> = routes.iter().filter(|route| route.dst == *taken).collect();
    assert!(matches!(&kept[..], [route] if route.protocol == KERNEL && route.via.is_none()), "{kept:?}");
    // All others were made, and with the obstacle gone so is this one.
    let left = diff(&observe(&mut node.netlink, &scope()).unwrap(), &desired);
    assert_eq!(left, [Change::AddRoute(*taken, wanted.clone())]);
    node.netlink.delete_route(&foreign).unwrap();
    assert_eq!(reconcile(&mut node, &desired), 1);
}

#[test]
fn a_change_that_fails_is_told_and_the_others_are_made() {
    let (mut node, mut desired) = (node(), desired(1));
    let unreachable = Family::V4.subnet(5);
    let gateway = Ipv4Addr::new(203, 0, 113, 1);
    desired.routes.insert(unreachable, Route { via: Some(gateway.into()), dev: "eth0".into(), onlink: false });
    let changes = diff(&observe(&mut node.netlink, &scope()).unwrap(), &desired);
    let failures = apply(&mut node.netlink, &changes);
    let [failure] = &failures[..] else { panic!("{failures:?}") };
    assert_eq!(failure.errno, Errno::ENETUNREACH);
    assert!(failure.to_string().contains(&format!("adding route {unreachable} via {gateway} dev eth0")), "{failure}");
    desired.routes.remove(&unreachable);
    assert_eq!(reconcile(&mut node, &desired), 0);
}

#[test]
fn a_device_that_cannot_be_made_is_told_once() {
    let (mut node, mut desired) = (node(), desired(50));
    for link in desired.links.values_mut() {
        let Tunnel::Vxlan(vxlan) = link else { continue };
        vxlan.underlay = "nowhere0".into();
    }
    let changes = diff(&Overlay::default(), &desired);
    let failures = apply(&mut node.netlink, &changes);
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures.iter().all(|failure| failure.to_string().contains("nowhere0")), "{failures:?}");
}
