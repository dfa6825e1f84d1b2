//! What is applied is what is observed.

use crate::stage::{Family, desired, index, node, reconcile, scope};
use kernel::netlink::{LinkChange, RouteKind, RouteSpec};
use kernel::{IpipLink, Overlay, Route, TunLink, Tunnel, apply, diff, observe};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

#[test]
fn what_is_applied_is_what_is_observed() {
    let mut node = node();
    assert!(reconcile(&mut node, &desired(3)) > 0);
    assert!(reconcile(&mut node, &desired(5)) == 2 * 2 * 3);
    assert!(reconcile(&mut node, &desired(1)) == 4 * 2 * 3);
    let device = node.netlink.link("flannel.1").unwrap().unwrap();
    assert_eq!(device.alias, "flanneld-rs");
    let accept_ra = node.netlink.netns().run(|| kernel::sysctl::get("net/ipv6/conf/flannel.1/accept_ra"));
    assert_eq!(accept_ra.unwrap().unwrap(), "0");
    reconcile(&mut node, &Overlay::default());
    assert_eq!(node.netlink.link("flannel.1").unwrap(), None);
}

/// Packets to a pod of nobody are refused, and do not take the default route, for both families.
#[test]
fn what_leads_nowhere_is_refused() {
    let mut node = node();
    let mut wanted = desired(1);
    for family in [Family::V4, Family::V6] {
        // As Go flannel makes them with --ip-blackhole-route.
        let boot = libc::RTPROT_BOOT;
        let spec =
            RouteSpec { dst: family.subnet(9), kind: RouteKind::Blackhole, protocol: boot, ..Default::default() };
        node.netlink.replace_route(&spec).unwrap();
    }
    for how in [RouteKind::Unreachable, RouteKind::Blackhole] {
        let refused = [Family::V4.subnet(9), Family::V4.subnet(1), Family::V6.subnet(9)];
        wanted.refusals.extend(refused.map(|network| (network, how)));
        assert!(reconcile(&mut node, &wanted) >= 3);
        for (family, peer, refused) in [(Family::V4, 9, true), (Family::V6, 9, true), (Family::V4, 1, false)] {
            let found = node.netlink.lookup(family.subnet(peer).network());
            assert_eq!(found.is_err(), refused, "{found:?}");
        }
    }
    let routes = node.netlink.routes().unwrap();
    let blackholes = routes.iter().filter(|route| route.kind == RouteKind::Blackhole);
    assert!(blackholes.clone().all(|route| route.protocol == kernel::ROUTE_PROTOCOL), "{routes:?}");
    assert_eq!(blackholes.count(), 3);
    wanted.refusals.remove(&Family::V4.subnet(1));
    assert_eq!(reconcile(&mut node, &wanted), 1, "the peer's own route stays");
    reconcile(&mut node, &Overlay::default());
}

#[test]
fn a_thousand_peers() {
    let (mut node, desired) = (node(), desired(1000));
    assert_eq!(reconcile(&mut node, &desired), 6 + 2 * 3 * 1000);
    let start = Instant::now();
    let seen = observe(&mut node.netlink, &scope()).unwrap();
    let changes = diff(&seen, &desired);
    assert_eq!(changes, []);
    // Generous, for a debug build on a busy machine; what it must not be is one question for each peer.
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

#[test]
fn host_gw_routes_need_no_device() {
    let mut node = node();
    let route = |via: IpAddr| Route { via: Some(via), dev: "eth0".into(), onlink: false };
    let mut desired = Overlay::default();
    desired.routes.insert(Family::V4.subnet(1), route(Ipv4Addr::new(192, 0, 2, 3).into()));
    desired.routes.insert(Family::V6.subnet(1), route(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3).into()));
    assert_eq!(reconcile(&mut node, &desired), 2);
    desired.routes.insert(Family::V4.subnet(1), route(Ipv4Addr::new(192, 0, 2, 4).into()));
    assert_eq!(reconcile(&mut node, &desired), 1);
    assert_eq!(reconcile(&mut node, &Overlay::default()), 2);
}

#[test]
fn the_back_end_changes_and_changes_back() {
    let (mut node, tunnels) = (node(), desired(2));
    let mut direct = tunnels.clone();
    for (family, via) in [
        (Family::V4, Ipv4Addr::new(192, 0, 2, 3).into()),
        (Family::V6, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3).into()),
    ] {
        direct.routes.insert(family.subnet(1), Route { via: Some(via), dev: "eth0".into(), onlink: false });
    }
    for wanted in [&tunnels, &direct, &tunnels] {
        reconcile(&mut node, wanted);
    }
}

#[test]
fn a_tun_device_is_kept_whoever_holds_it_and_comes_back() {
    let mut node = node();
    let mut wanted = Overlay::default();
    wanted.links.insert("flannel.1".into(), Tunnel::Tun(TunLink { mtu: 1472 }));
    wanted.addresses.insert(("flannel.1".into(), "10.64.0.0/32".parse().unwrap()));
    wanted.routes.insert("10.64.0.0/10".parse().unwrap(), Route { via: None, dev: "flannel.1".into(), onlink: false });
    reconcile(&mut node, &wanted);
    let first = index(&mut node, "flannel.1");
    let held = kernel::tun::Tun::open_in(node.netlink.netns(), "flannel.1").unwrap();
    let down = LinkChange { up: Some(false), mtu: Some(1300), ..LinkChange::default() };
    node.netlink.set_link(first, &down).unwrap();
    reconcile(&mut node, &wanted);
    assert_eq!(index(&mut node, "flannel.1"), first);
    node.netlink.delete_link("flannel.1").unwrap();
    reconcile(&mut node, &wanted);
    assert_ne!(index(&mut node, "flannel.1"), first);
    drop(held);
    // From one kind to the other and back.
    reconcile(&mut node, &desired(2));
    reconcile(&mut node, &wanted);
}

#[test]
fn a_kernel_without_ipip_is_told_from_a_failure() {
    let mut node = node();
    let mut wanted = Overlay::default();
    let link = IpipLink { local: Ipv4Addr::new(192, 0, 2, 1), mtu: 1480 };
    wanted.links.insert("flannel.1".into(), Tunnel::Ipip(link));
    let actual = observe(&mut node.netlink, &scope()).unwrap();
    let failures = apply(&mut node.netlink, &diff(&actual, &wanted));
    if failures.is_empty() {
        // This kernel has them.
        reconcile(&mut node, &wanted);
        return;
    }
    eprintln!("this kernel has no ipip devices: only their absence is tested");
    let [failure] = failures.as_slice() else { panic!("{failures:?}") };
    assert!(failure.to_string().contains("use backend vxlan or host-gw"), "{failure}");
}
