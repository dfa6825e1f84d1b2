//! The overlay on the real kernel: what is applied is what is observed, and what is broken heals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{
    Change, IpipLink, Mac, Overlay, ROUTE_PROTOCOL, Route, Scope, TunLink, Tunnel, VxlanLink, apply, diff, observe,
};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// RTPROT_BOOT, with which Go flannel's routes come.
const BOOT: u8 = 3;
/// RTPROT_KERNEL: routes that come with an address.
const KERNEL: u8 = 2;
/// RT_SCOPE_LINK.
const LINK: u8 = 253;

/// A node with an uplink, alone in the world.
struct Node {
    netlink: Netlink,
    uplink: u32,
    _far: Netns,
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn device(self) -> &'static str {
        match self {
            Family::V4 => "flannel.1",
            Family::V6 => "flannel-v6.1",
        }
    }

    fn local(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn remote(self, peer: u16) -> IpAddr {
        let [high, low] = peer.to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, peer).into(),
        }
    }

    /// Peer 0 is the node itself.
    fn subnet(self, peer: u16) -> IpNetwork {
        let [high, low] = peer.to_be_bytes();
        match self {
            Family::V4 => IpNetwork::new(Ipv4Addr::new(10, 64 + high, low, 0).into(), 24).unwrap(),
            Family::V6 => IpNetwork::new(Ipv6Addr::new(0xfd00, 5, peer, 0, 0, 0, 0, 0).into(), 64).unwrap(),
        }
    }
}

fn node() -> Node {
    let netns = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let far = Netns::create().unwrap();
    let mut netlink = Netlink::open_in(&netns).unwrap();
    let spec = VethSpec {
        name: "eth0",
        alias: "",
        mac: None,
        mtu: Some(1500),
        master: None,
        hairpin: false,
        up: true,
        peer_name: "eth0",
        peer_mac: None,
        peer_netns: &far,
    };
    netlink.create_veth(&spec).unwrap();
    let mut there = Netlink::open_in(&far).unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let peer = there.link("eth0").unwrap().unwrap().index;
    there.set_link(peer, &up).unwrap();
    let uplink = netlink.link("eth0").unwrap().unwrap().index;
    netlink.add_address(uplink, "192.0.2.1/24".parse().unwrap()).unwrap();
    netlink.add_address(uplink, "2001:db8::1/64".parse().unwrap()).unwrap();
    Node { netlink, uplink, _far: far }
}

fn scope() -> Scope {
    Scope {
        devices: BTreeSet::from(["flannel.1".into(), "flannel-v6.1".into()]),
        networks: vec!["10.64.0.0/10".parse().unwrap(), "fd00:5::/32".parse().unwrap()],
    }
}

fn vxlan(family: Family) -> VxlanLink {
    VxlanLink {
        vni: 1,
        port: 8472,
        underlay: "eth0".into(),
        local: family.local(),
        mac: Mac::derive(family.device()),
        mtu: if matches!(family, Family::V4) { 1450 } else { 1430 },
        learning: false,
        gbp: false,
        tx_checksum: Some(matches!(family, Family::V4)),
    }
}

fn desire(overlay: &mut Overlay, family: Family, peers: u16) {
    let device = family.device().to_owned();
    overlay.links.insert(device.clone(), Tunnel::Vxlan(vxlan(family)));
    let own = family.subnet(0).network();
    overlay.addresses.insert((device.clone(), IpNetwork::from(own)));
    for peer in 1..=peers {
        let (subnet, mac) = (family.subnet(peer), Mac::derive(&format!("{device} {peer}")));
        overlay.neighbours.insert((device.clone(), subnet.network()), mac);
        overlay.fdb.insert((device.clone(), mac), family.remote(peer));
        overlay.routes.insert(subnet, Route { via: Some(subnet.network()), dev: device.clone(), onlink: true });
    }
}

fn desired(peers: u16) -> Overlay {
    let mut overlay = Overlay::default();
    desire(&mut overlay, Family::V4, peers);
    desire(&mut overlay, Family::V6, peers);
    overlay
}

/// One pass of the daemon's loop. Afterwards the kernel has what is desired, and a second pass finds nothing to do.
fn reconcile(node: &mut Node, desired: &Overlay) -> usize {
    let changes = diff(&observe(&mut node.netlink, &scope()).unwrap(), desired);
    assert_eq!(apply(&mut node.netlink, &changes), []);
    let after = observe(&mut node.netlink, &scope()).unwrap();
    assert_eq!(diff(&after, desired), []);
    assert_eq!(&after, desired);
    changes.len()
}

fn index(node: &mut Node, name: &str) -> u32 {
    node.netlink.link(name).unwrap().unwrap().index
}

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
    wanted.refusals.extend([Family::V4.subnet(9), Family::V4.subnet(1), Family::V6.subnet(9)]);
    assert!(reconcile(&mut node, &wanted) > 3);
    for (family, peer, refused) in [(Family::V4, 9, true), (Family::V6, 9, true), (Family::V4, 1, false)] {
        let found = node.netlink.lookup(family.subnet(peer).network());
        assert_eq!(found.is_err(), refused, "{found:?}");
    }
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
