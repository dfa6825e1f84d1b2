//! Links, addresses, routes and neighbours on the real kernel, in namespaces of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use ipnetwork::IpNetwork;
use kernel::netlink::{Link, LinkChange, LinkKind, Netlink, RouteKind, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, ROUTE_PROTOCOL, VxlanLink};
use nix::errno::Errno;
use std::net::IpAddr;

const MAC: Mac = Mac([0x0a, 0x58, 0x0a, 5, 2, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn up() -> LinkChange {
    LinkChange { up: Some(true), ..LinkChange::default() }
}

/// A namespace and a connection to it.
fn node() -> (Netns, Netlink) {
    let netns = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let netlink = Netlink::open_in(&netns).unwrap();
    (netns, netlink)
}

fn find(netlink: &mut Netlink, name: &str) -> Link {
    netlink.link(name).unwrap().unwrap_or_else(|| panic!("{name} is missing"))
}

fn veth<'a>(name: &'a str, peer_netns: &'a Netns) -> VethSpec<'a> {
    VethSpec {
        alias: "test",
        mac: Some(Mac::derive(name)),
        mtu: Some(1450),
        up: true,
        peer_mac: Some(MAC),
        ..VethSpec::new(name, "eth0", peer_netns)
    }
}

/// A node with `uplink` up, an address of each family on it, and its carrier on.
fn node_with_uplink() -> (Netlink, Link, Netns) {
    let (_, mut here) = node();
    let (far, mut there) = node();
    here.create_veth(&veth("uplink", &far)).unwrap();
    let peer = find(&mut there, "eth0");
    there.set_link(peer.index, &up()).unwrap();
    let uplink = find(&mut here, "uplink");
    here.add_address(uplink.index, net("192.0.2.1/24")).unwrap();
    here.add_address(uplink.index, net("2001:db8::1/64")).unwrap();
    (here, uplink, far)
}

#[test]
fn a_veth_pair_is_born_on_both_sides_of_the_wall() {
    let (_, mut host) = node();
    let (netns, mut pod) = node();
    host.create_bridge("cbr0", Mac::derive("bridge"), Some(1450), "flanneld-rs").unwrap();
    let bridge = find(&mut host, "cbr0");
    assert_eq!(
        (&bridge.kind, bridge.mac, bridge.mtu, bridge.up),
        (&LinkKind::Bridge, Some(Mac::derive("bridge")), 1450, true)
    );
    assert_eq!(bridge.alias, "flanneld-rs");

    host.create_veth(&VethSpec { master: Some(bridge.index), hairpin: true, ..veth("veth0", &netns) }).unwrap();
    let (near, far) = (find(&mut host, "veth0"), find(&mut pod, "eth0"));
    assert_eq!((&near.kind, near.mac, near.mtu), (&LinkKind::Veth, Some(Mac::derive("veth0")), 1450));
    assert_eq!(
        (near.master, near.hairpin, near.up, near.alias.as_str()),
        (Some(bridge.index), Some(true), true, "test")
    );
    assert_eq!((far.mac, far.mtu, far.up), (Some(MAC), 1450, false));
    assert_eq!((near.peer, far.peer), (Some(far.index), Some(near.index)));
    assert_eq!((host.index_of("veth0").unwrap(), pod.index_of("eth0").unwrap()), (Some(near.index), Some(far.index)));
    assert_eq!(pod.index_of("veth0").unwrap(), None, "it is in the other namespace");
    assert_eq!(find(&mut host, "cbr0").mac, Some(Mac::derive("bridge")), "a port must not change the bridge's address");

    host.set_link(near.index, &LinkChange { hairpin: Some(false), ..LinkChange::default() }).unwrap();
    assert_eq!(host.link_by_index(near.index).unwrap().unwrap().hairpin, Some(false));
    assert_eq!(host.create_veth(&veth("veth0", &netns)).unwrap_err().errno, Errno::EEXIST);
    assert!(host.delete_link("veth0").unwrap());
    assert!(!host.delete_link("veth0").unwrap());
    assert!(!host.delete_link_by_index(near.index).unwrap());
    assert_eq!((host.link("veth0").unwrap(), pod.link("eth0").unwrap()), (None, None));
}

#[test]
fn a_name_that_is_taken_in_the_pod_leaves_nothing_behind() {
    let (_, mut host) = node();
    let (netns, _) = node();
    host.create_veth(&veth("veth0", &netns)).unwrap();
    let error = host.create_veth(&veth("veth1", &netns)).unwrap_err();
    assert_eq!(error.errno, Errno::EEXIST, "{error}");
    assert!(error.to_string().contains("veth1"), "{error}");
    assert_eq!(host.link("veth1").unwrap(), None);
}

#[test]
fn names_that_cannot_be_are_refused_before_the_kernel_cuts_them_off() {
    let (_, mut netlink) = node();
    for name in ["", ".", "..", "a/b", "a b", "lo\0x", "sixteen-bytes-xx"] {
        assert_eq!(netlink.link(name).unwrap_err().errno, Errno::EINVAL, "{name:?}");
    }
}

#[test]
fn links_change() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    assert!(uplink.running);
    netlink.create_bridge("br0", MAC, None, "").unwrap();
    let bridge = find(&mut netlink, "br0").index;
    let change = LinkChange {
        mtu: Some(1400),
        mac: Some(MAC),
        master: Some(Some(bridge)),
        alias: Some("renamed".into()),
        up: Some(false),
        ..LinkChange::default()
    };
    netlink.set_link(uplink.index, &change).unwrap();
    netlink.set_link(uplink.index, &LinkChange { name: Some("port".into()), ..LinkChange::default() }).unwrap();
    let link = find(&mut netlink, "port");
    assert_eq!((link.mtu, link.mac, link.master, link.up), (1400, Some(MAC), Some(bridge), false));
    netlink.set_link(link.index, &LinkChange { master: Some(None), ..LinkChange::default() }).unwrap();
    assert_eq!(find(&mut netlink, "port").master, None);
    let names: Vec<_> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
    assert!(names.contains(&"port".into()) && names.contains(&"lo".into()), "{names:?}");
    assert_eq!(find(&mut netlink, "lo").kind, LinkKind::Loopback);
}

#[test]
fn addresses_come_and_go_twice() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    for address in ["10.5.2.1/24", "fd00:5:2::1/64"].map(net) {
        netlink.add_address(uplink.index, address).unwrap();
        netlink.add_address(uplink.index, address).expect("having it already is success");
        assert!(netlink.addresses_of(uplink.index).unwrap().contains(&address));
        assert!(netlink.addresses().unwrap().contains(&(uplink.index, address)));
        assert!(netlink.delete_address(uplink.index, address).unwrap());
        assert!(!netlink.delete_address(uplink.index, address).unwrap());
        assert!(!netlink.addresses_of(uplink.index).unwrap().contains(&address));
    }
    assert_eq!(netlink.add_address(9999, net("10.0.0.1/8")).unwrap_err().errno, Errno::ENODEV);
}

#[test]
fn routes_come_change_and_go() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    for (dst, via, other) in
        [("10.5.3.0/24", "192.0.2.3", "192.0.2.4"), ("fd00:5:3::/64", "2001:db8::3", "2001:db8::4")]
    {
        let spec = RouteSpec {
            dst: net(dst),
            via: Some(ip(via)),
            dev: Some(uplink.index),
            mtu: Some(1400),
            advmss: Some(1300),
            ..RouteSpec::default()
        };
        netlink.add_route(&spec).unwrap();
        let error = netlink.add_route(&spec).unwrap_err();
        assert_eq!(error.errno, Errno::EEXIST);
        assert!(error.to_string().contains(&format!("adding route {dst} via {via}")), "{error}");
        let changed = RouteSpec { via: Some(ip(other)), ..spec.clone() };
        netlink.replace_route(&changed).unwrap();
        let found: Vec<_> = netlink.routes().unwrap().into_iter().filter(|route| route.dst == net(dst)).collect();
        let [route] = &found[..] else { panic!("{found:?}") };
        assert_eq!((route.via, route.dev, route.protocol), (Some(ip(other)), Some(uplink.index), ROUTE_PROTOCOL));
        assert_eq!(
            (route.mtu, route.advmss, route.kind, route.table),
            (Some(1400), Some(1300), RouteKind::Unicast, 254)
        );
        assert!(netlink.delete_route(&changed).unwrap());
        assert!(!netlink.delete_route(&changed).unwrap());
    }
}

#[test]
fn default_blackhole_and_link_routes_and_other_tables() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    let dev = Some(uplink.index);
    let specs = [
        RouteSpec { via: Some(ip("192.0.2.9")), dev, ..RouteSpec::default() },
        RouteSpec { dst: net("::/0"), via: Some(ip("2001:db8::9")), dev, ..RouteSpec::default() },
        RouteSpec { dst: net("10.9.0.0/16"), kind: RouteKind::Blackhole, ..RouteSpec::default() },
        RouteSpec { dst: net("fd00:9::/32"), kind: RouteKind::Unreachable, ..RouteSpec::default() },
        RouteSpec { dst: net("10.8.0.0/16"), dev, metric: Some(7), ..RouteSpec::default() },
        RouteSpec { dst: net("10.7.0.0/16"), via: Some(ip("198.51.100.1")), dev, onlink: true, ..RouteSpec::default() },
        RouteSpec { dst: net("10.6.0.0/16"), via: Some(ip("2001:db8::6")), dev, ..RouteSpec::default() },
        RouteSpec {
            dst: net("10.4.0.0/16"),
            dev,
            table: Some(1000),
            source: Some(ip("192.0.2.1")),
            ..RouteSpec::default()
        },
    ];
    for spec in &specs {
        netlink.add_route(spec).unwrap();
        let routes = netlink.routes().unwrap();
        let route = routes.iter().find(|route| route.dst == spec.dst && route.protocol == ROUTE_PROTOCOL).unwrap();
        assert_eq!((route.via, route.kind, route.onlink), (spec.via, spec.kind, spec.onlink), "{spec}");
        assert_eq!((route.table, route.source), (spec.table.unwrap_or(254), spec.source), "{spec}");
        if spec.dst.is_ipv4() {
            assert_eq!(route.metric, spec.metric, "{spec}");
        }
    }
    for spec in &specs {
        assert!(netlink.delete_route(spec).unwrap(), "{spec}");
    }
    assert!(netlink.routes().unwrap().iter().all(|route| route.protocol != ROUTE_PROTOCOL));
}

#[test]
fn a_route_is_looked_up_as_a_packet_would() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    netlink.add_route(&RouteSpec { via: Some(ip("192.0.2.9")), ..RouteSpec::default() }).unwrap();
    for (to, via, source) in [
        ("198.51.100.1", Some("192.0.2.9"), "192.0.2.1"),
        ("192.0.2.77", None, "192.0.2.1"),
        ("2001:db8::77", None, "2001:db8::1"),
    ] {
        let route = netlink.lookup(ip(to)).unwrap();
        assert_eq!((route.via, route.dev, route.source), (via.map(ip), Some(uplink.index), Some(ip(source))), "{to}");
    }
    let error = netlink.lookup(ip("fd00::1")).unwrap_err();
    assert_eq!(error.errno, Errno::ENETUNREACH, "{error}");
}

#[test]
fn neighbours_and_forwarding_entries() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    let link = VxlanLink {
        vni: 1,
        port: 8472,
        underlay: "uplink".into(),
        local: ip("192.0.2.1"),
        mac: MAC,
        mtu: 1400,
        learning: false,
        gbp: true,
        tx_checksum: None,
    };
    netlink.create_vxlan("flannel.1", &link, "flanneld-rs").unwrap();
    let device = find(&mut netlink, "flannel.1");
    let LinkKind::Vxlan(vxlan) = &device.kind else { panic!("{device:?}") };
    assert_eq!((vxlan.vni, vxlan.port, vxlan.underlay), (1, 8472, Some(uplink.index)));
    assert_eq!((vxlan.local, vxlan.learning, vxlan.gbp), (Some(ip("192.0.2.1")), false, true));
    assert_eq!((device.mac, device.mtu, device.up, device.alias.as_str()), (Some(MAC), 1400, true, "flanneld-rs"));
    assert_eq!(netlink.addresses_of(device.index).unwrap(), [], "no link-local address");

    let peer = Mac([2, 0, 0, 0, 0, 9]);
    for address in ["10.5.3.0", "fd00:5:3::"].map(ip) {
        netlink.set_neighbour(device.index, address, MAC).unwrap();
        netlink.set_neighbour(device.index, address, peer).unwrap();
        let found = netlink.neighbours(Some(device.index)).unwrap();
        let entry = found.iter().find(|entry| entry.ip == address).unwrap();
        assert_eq!((entry.mac, entry.permanent), (Some(peer), true));
        assert!(netlink.delete_neighbour(device.index, address).unwrap());
        assert!(!netlink.delete_neighbour(device.index, address).unwrap());
    }
    netlink.set_fdb(device.index, peer, ip("192.0.2.3")).unwrap();
    netlink.set_fdb(device.index, peer, ip("192.0.2.4")).unwrap();
    let found = netlink.fdb(device.index).unwrap();
    let [entry] = &found[..] else { panic!("{found:?}") };
    assert_eq!((entry.mac, entry.dst, entry.permanent), (peer, Some(ip("192.0.2.4")), true));
    assert!(netlink.delete_fdb(device.index, peer, ip("192.0.2.4")).unwrap());
    assert!(!netlink.delete_fdb(device.index, peer, ip("192.0.2.4")).unwrap());

    let error = netlink.create_vxlan("flannel.2", &VxlanLink { underlay: "nowhere0".into(), ..link }, "").unwrap_err();
    assert!(error.errno == Errno::ENODEV && error.to_string().contains("nowhere0"), "{error}");
}

#[test]
fn drivers_are_asked_and_told() {
    let (mut netlink, uplink, _far) = node_with_uplink();
    assert_eq!(netlink.driver("uplink").unwrap().as_deref(), Some("veth"));
    for on in [false, true] {
        netlink.set_tx_checksum("uplink", on).unwrap();
        assert_eq!(netlink.tx_checksum("uplink").unwrap(), Some(on));
    }
    netlink.delete_link_by_index(uplink.index).unwrap();
    for nobody in ["uplink", "a-name-that-is-far-too-long"] {
        assert_eq!((netlink.driver(nobody).unwrap(), netlink.tx_checksum(nobody).unwrap()), (None, None));
        let error = netlink.set_tx_checksum(nobody, false).unwrap_err();
        assert!(error.errno == Errno::EOPNOTSUPP && error.to_string().contains(nobody), "{error}");
    }
}

/// No kernel of ours has the second, and asking makes no device.
#[test]
fn kinds_of_device_are_known_or_not() {
    let sandbox = Netns::create().unwrap();
    let mut netlink = Netlink::open_in(&sandbox).unwrap();
    let before = netlink.links().unwrap();
    assert!(netlink.supports("bridge").unwrap() && netlink.supports("ifb").unwrap());
    assert!(!netlink.supports("flux-capacitor").unwrap());
    assert_eq!(netlink.links().unwrap(), before);
}
