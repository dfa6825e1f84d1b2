//! What the backends announce and desire: pure values, so that every case is a table row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Desired, Means, Node, Work};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::lease::{Announcement, Endpoint, Lease, LeaseTable};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use kernel::wireguard::PublicKey;
use kernel::{Overlay, Route, Tunnel};

fn uplink() -> Uplink {
    let way = |text: &str| {
        let address: IpNetwork = text.parse().unwrap();
        let (local, interface) = (address.ip(), "eth0".into());
        Some(Way {
            interface,
            mtu: 1500,
            local,
            public: local,
            translated: false,
            on_link: vec![address],
            drivers: Default::default(),
        })
    };
    Uplink { ways: PerFamily { v4: way("192.168.0.1/24"), v6: way("2001:db8::1/64") } }
}

fn means() -> Means {
    Means { wireguard: Some((PublicKey([1; 32]), false)), ..Means::default() }
}

fn backend(backend: &str) -> Backend {
    let config = format!(r#"{{"Network": "10.5.0.0/16", "Backend": {backend}}}"#);
    Backend::new(&NetworkConfig::parse(&config).unwrap(), means()).unwrap()
}

fn subnets(texts: &[&str]) -> PerFamily<IpNetwork> {
    let parsed = texts.iter().map(|text| text.parse::<IpNetwork>().unwrap());
    parsed.map(|subnet| (Family::of(subnet.ip()), subnet)).collect()
}

fn peer(backend_type: &str, texts: &[&str], public: &[&str], data: Option<&str>) -> Lease {
    let endpoints = public.iter().map(|public| {
        let public_ip = public.parse().unwrap();
        (Family::of(public_ip), Endpoint { public_ip, data: data.map(String::from) })
    });
    let announcement = Announcement { backend_type: backend_type.into(), endpoints: endpoints.collect() };
    Lease { subnets: subnets(texts), announcement }
}

fn desired(backend: &Backend, own: &[&str], peers: &[Lease]) -> Desired {
    let families: Vec<Family> = subnets(own).families().collect();
    let own = Lease { subnets: subnets(own), announcement: backend.announcement(&uplink(), &families) };
    let leases: LeaseTable = peers.iter().cloned().chain([own.clone()]).collect();
    backend
        .desired(&Node { networks: &subnets(&["10.5.0.0/16", "fd00:5::/32"]), uplink: &uplink(), own: &own }, &leases)
}

const MAC2: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;

#[test]
fn a_vxlan_peer_is_a_neighbour_a_forwarding_entry_and_a_route_in_either_family() {
    let backend = backend(r#"{"Type": "vxlan"}"#);
    let peers = [peer("vxlan", &["10.5.2.0/24", "fd00:5:2::/64"], &["192.168.0.2", "2001:db8::2"], Some(MAC2))];
    let Desired { overlay, left_out, contested } = desired(&backend, &["10.5.1.0/24", "fd00:5:1::/64"], &peers);
    assert_eq!((left_out.len(), contested), (0, Overlay::default()));
    assert_eq!(overlay.links.keys().collect::<Vec<_>>(), ["flannel-v6.1", "flannel.1"]);
    let vxlan = |name: &str| match &overlay.links[name] {
        Tunnel::Vxlan(link) => link,
        other => panic!("{other}"),
    };
    let (v4, v6) = (vxlan("flannel.1"), vxlan("flannel-v6.1"));
    assert_eq!((v4.vni, v4.port, v4.mtu, v4.learning), (1, 8472, 1450, false));
    // The outer IPv6 header is 20 bytes longer; the kernel clamps to the same.
    assert_eq!((v6.mtu, v6.underlay.as_str()), (1430, "eth0"));
    assert_ne!(v4.mac, v6.mac);
    assert_eq!(backend.mtu(&uplink(), &[Family::V4]), 1450);
    assert_eq!(backend.mtu(&uplink(), &Family::ALL), 1430);
    for (device, subnet, gateway, outer) in [
        ("flannel.1", "10.5.2.0/24", "10.5.2.0", "192.168.0.2"),
        ("flannel-v6.1", "fd00:5:2::/64", "fd00:5:2::", "2001:db8::2"),
    ] {
        let route = Route { via: Some(gateway.parse().unwrap()), dev: device.into(), onlink: true };
        assert_eq!(overlay.routes[&subnet.parse().unwrap()], route);
        let mac = overlay.neighbours[&(device.into(), gateway.parse().unwrap())];
        assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
        assert_eq!(overlay.fdb[&(device.into(), mac)].to_string(), outer);
    }
    let addresses: Vec<String> =
        overlay.addresses.iter().map(|(device, address)| format!("{device} {address}")).collect();
    assert_eq!(addresses, ["flannel-v6.1 fd00:5:1::/128", "flannel.1 10.5.1.0/32"]);
    assert_eq!((overlay.routes.len(), overlay.neighbours.len(), overlay.fdb.len()), (2, 2, 2));
}

#[test]
fn what_a_node_announces_depends_on_its_address_only() {
    let announced = |uplink: &Uplink| backend(r#"{"Type": "vxlan"}"#).announcement(uplink, &[Family::V4]);
    let (first, again) = (announced(&uplink()), announced(&uplink()));
    assert_eq!(first, again);
    let data = first.endpoints.v4.as_ref().unwrap().data.clone().unwrap();
    assert!(data.starts_with(r#"{"VNI":1,"VtepMAC":""#) && data.ends_with(r#""}"#), "{data}");
    let mut elsewhere = uplink();
    elsewhere.ways.v4.as_mut().unwrap().public = "192.168.0.9".parse().unwrap();
    assert_ne!(announced(&elsewhere).endpoints.v4.unwrap().data.unwrap(), data);
    // A device that a predecessor left keeps the address that the others know.
    let kept = PerFamily { v4: Some("c6:d2:32:6f:8f:44".parse().unwrap()), v6: None };
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let announced =
        Backend::new(&config, Means { macs: kept, ..Means::default() }).unwrap().announcement(&uplink(), &[Family::V4]);
    assert_eq!(announced.endpoints.v4.unwrap().data.as_deref(), Some(MAC2));
    let host_gw = backend(r#"{"Type": "host-gw"}"#).announcement(&uplink(), &[Family::V4]);
    assert_eq!((host_gw.backend_type.as_str(), host_gw.endpoints.v4.unwrap().data), ("host-gw", None));
}

/// A router in between that translates addresses, or a cloud: the public address is on no interface of the node.
#[test]
fn a_tunnel_leaves_from_an_address_that_the_node_has_whatever_it_announces() {
    let mut natted = uplink();
    natted.ways = natted.ways.map(|family, way| {
        let public = if family == Family::V4 { "203.0.113.1" } else { "2001:db8:ffff::1" };
        Way { public: public.parse().unwrap(), translated: true, ..way.clone() }
    });
    let backend = backend(r#"{"Type": "vxlan"}"#);
    let announcement = backend.announcement(&natted, &Family::ALL);
    let announced: Vec<_> = announcement.endpoints.iter().map(|(_, endpoint)| endpoint.public_ip.to_string()).collect();
    assert_eq!(announced, ["203.0.113.1", "2001:db8:ffff::1"]);
    let own = Lease { subnets: subnets(&["10.5.1.0/24", "fd00:5:1::/64"]), announcement };
    let node = Node { networks: &subnets(&["10.5.0.0/16", "fd00:5::/32"]), uplink: &natted, own: &own };
    let overlay = backend.desired(&node, &[own.clone()].into_iter().collect()).overlay;
    for (device, local) in [("flannel.1", "192.168.0.1"), ("flannel-v6.1", "2001:db8::1")] {
        let Tunnel::Vxlan(link) = &overlay.links[device] else { panic!("{device} is no VXLAN device") };
        assert_eq!(link.local.to_string(), local);
        assert_eq!(link.tx_checksum, Some(false), "who translates addresses may spoil checksums");
    }
    let Tunnel::Vxlan(link) = &desired(&backend, &["10.5.1.0/24"], &[]).overlay.links["flannel.1"] else { panic!() };
    assert_eq!(link.tx_checksum, None, "elsewhere it may be an administrator's");
}

/// Whatever a newer flannel may add to its data.
#[test]
fn further_members_of_backend_data_hide_none() {
    let data = r#"{"Note":"a\":\"b","VtepMAC":"c6:d2:32:6f:8f:44","VNI":1,"More":{"VtepMAC":"fish"}}"#;
    let peers = [peer("vxlan", &["10.5.2.0/24"], &["192.168.0.2"], Some(data))];
    let overlay = desired(&backend(r#"{"Type": "vxlan"}"#), &["10.5.1.0/24"], &peers).overlay;
    assert_eq!(overlay.neighbours.values().map(ToString::to_string).collect::<Vec<_>>(), ["c6:d2:32:6f:8f:44"]);
}

#[test]
fn host_gw_and_direct_routing_go_through_the_node_itself() {
    let through_node = Route { via: Some("192.168.0.2".parse().unwrap()), dev: "eth0".into(), onlink: false };
    let near = |kind| peer(kind, &["10.5.2.0/24"], &["192.168.0.2"], Some(MAC2));
    let far = |kind| peer(kind, &["10.5.3.0/24"], &["192.168.7.3"], Some(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}"#));

    let host_gw = desired(&backend(r#"{"Type": "host-gw"}"#), &["10.5.1.0/24"], &[near("host-gw"), far("host-gw")]);
    let routes = [("10.5.2.0/24".parse().unwrap(), through_node.clone())].into();
    assert_eq!(host_gw.overlay, Overlay { routes, ..Overlay::default() });
    assert!(host_gw.reasons()[0].contains("192.168.7.3 is not on the network of eth0"), "{host_gw:?}");

    let direct = backend(r#"{"Type": "vxlan", "DirectRouting": true}"#);
    let overlay = desired(&direct, &["10.5.1.0/24"], &[near("vxlan"), far("vxlan")]).overlay;
    assert_eq!(overlay.routes[&"10.5.2.0/24".parse().unwrap()], through_node);
    assert_eq!(overlay.routes[&"10.5.3.0/24".parse().unwrap()].dev, "flannel.1");
    assert_eq!((overlay.neighbours.len(), overlay.fdb.len()), (1, 1));
}

#[test]
fn a_peer_that_makes_no_sense_is_left_out_with_the_reason_and_harms_no_other() {
    let backend = backend(r#"{"Type": "vxlan"}"#);
    let good = peer("vxlan", &["10.5.2.0/24"], &["192.168.0.2"], Some(MAC2));
    let alone = desired(&backend, &["10.5.1.0/24"], std::slice::from_ref(&good)).overlay;
    for (bad, reason) in [
        (peer("host-gw", &["10.5.3.0/24"], &["192.168.0.3"], None), "its backend is \"host-gw\""),
        (peer("vxlan", &["10.5.3.0/24"], &["192.168.0.3"], None), "unusable IPv4 backend data"),
        (peer("vxlan", &["10.5.3.0/24"], &["192.168.0.3"], Some("{\"VtepMAC\":7}")), "unusable IPv4 backend data"),
        (peer("vxlan", &["10.5.3.0/24"], &["192.168.0.3"], Some("{\"VtepMAC\":\"fish\"}")), "fish"),
        (peer("vxlan", &["10.5.3.0/24"], &[], None), "announces no public IPv4 address"),
        (peer("vxlan", &["10.5.0.0/20"], &["192.168.0.3"], Some(MAC2)), "overlaps our own 10.5.1.0/24"),
        (peer("vxlan", &["10.5.3.0/24"], &["192.168.0.3"], Some(MAC2)), "c6:d2:32:6f:8f:44 leads to 192.168.0.2"),
        // The underlay's own prefix: the route would take the place of the connected one, and cut the node off.
        (peer("vxlan", &["192.168.0.0/24"], &["203.0.113.3"], Some(MAC2)), "is no part of the pod network"),
        (peer("vxlan", &["10.4.0.0/15"], &["192.168.0.3"], Some(MAC2)), "overlaps our own 10.5.1.0/24"),
        (peer("vxlan", &["10.5.3.0/24"], &["10.5.3.9"], Some(MAC2)), "a node's own address in it, 10.5.3.9"),
        (peer("vxlan", &["10.5.3.0/24"], &["192.168.0.1"], Some(MAC2)), "192.168.0.1 is our own address"),
    ] {
        let desired = desired(&backend, &["10.5.1.0/24"], &[good.clone(), bad]);
        assert_eq!(desired.overlay, alone, "{reason}");
        let left_out = desired.reasons();
        assert!(left_out.len() == 1 && left_out[0].contains(reason), "{left_out:?} should say {reason}");
    }
}

#[test]
fn an_underlay_inside_the_pod_network_is_never_routed_into_the_tunnel() {
    let backend = backend(r#"{"Type": "vxlan"}"#);
    let own =
        Lease { subnets: subnets(&["192.168.9.0/24"]), announcement: backend.announcement(&uplink(), &[Family::V4]) };
    let peers = [
        peer("vxlan", &["192.168.0.0/24"], &["203.0.113.3"], Some(MAC2)),
        peer("vxlan", &["192.168.2.0/24"], &["192.168.0.2"], Some(MAC2)),
    ];
    let leases: LeaseTable = peers.into_iter().collect();
    let networks = subnets(&["192.168.0.0/16"]);
    let desired = backend.desired(&Node { networks: &networks, uplink: &uplink(), own: &own }, &leases);
    let (left_out, overlay) = (desired.reasons(), &desired.overlay);
    assert!(overlay.routes.keys().eq([&"192.168.2.0/24".parse().unwrap()]), "{overlay:?}");
    assert!(left_out.len() == 1 && left_out[0].contains("a node's own address in it, 192.168.0.1"), "{left_out:?}");
}

#[test]
fn mtu_follows_configuration_and_underlay() {
    for (config, underlay, wanted) in [
        (r#"{"Type": "vxlan"}"#, 1500, 1450),
        (r#"{"Type": "vxlan"}"#, 9001, 8951),
        (r#"{"Type": "vxlan", "MTU": 1400}"#, 1500, 1350),
        // What does not fit the underlay would be lost.
        (r#"{"Type": "vxlan", "MTU": 9000}"#, 1500, 1450),
        (r#"{"Type": "host-gw"}"#, 1460, 1460),
        (r#"{"Type": "alloc"}"#, 1460, 1460),
        (r#"{"Type": "ipip"}"#, 1500, 1480),
        (r#"{"Type": "ipip"}"#, 60, 68),
        (r#"{"Type": "udp"}"#, 1500, 1472),
        (r#"{"Type": "udp"}"#, 9001, 8973),
    ] {
        let mut uplink = uplink();
        uplink.ways.v4.as_mut().unwrap().mtu = underlay;
        assert_eq!(backend(config).mtu(&uplink, &[Family::V4]), wanted, "{config} over {underlay}");
    }
}

/// What the daemon carries itself for `peers`.
fn work(backend: &Backend, own: &[&str], peers: &[Lease]) -> Work {
    let families: Vec<Family> = subnets(own).families().collect();
    let own = Lease { subnets: subnets(own), announcement: backend.announcement(&uplink(), &families) };
    let leases: LeaseTable = peers.iter().cloned().chain([own.clone()]).collect();
    let networks = subnets(&["10.5.0.0/16", "fd00:5::/32"]);
    backend.work(&Node { networks: &networks, uplink: &uplink(), own: &own }, &leases)
}

#[test]
fn udp_has_one_route_for_all_nodes_and_a_proxy_for_each_family() {
    let backend = backend(r#"{"Type": "udp", "Port": 7890}"#);
    let good = peer("", &["10.5.2.0/24", "fd00:5:2::/64"], &["192.168.0.2", "2001:db8::2"], None);
    let bad = peer("vxlan", &["10.5.3.0/24"], &["192.168.0.3"], Some(MAC2));
    let own = ["10.5.1.0/24", "fd00:5:1::/64"];
    let alone = desired(&backend, &own, &[]).overlay;
    let Desired { overlay, left_out, .. } = desired(&backend, &own, &[good.clone(), bad.clone()]);
    assert_eq!(overlay, alone, "nodes change nothing in the kernel");
    assert!(left_out.values().flatten().eq([&format!("{bad}: its backend is \"vxlan\", ours none (udp, alloc)")]));
    let links: Vec<String> = overlay.links.iter().map(|(name, link)| format!("{name} {link} {}", link.mtu())).collect();
    assert_eq!(links, ["flannel0 tun 1472", "flannel0-v6 tun 1452"]);
    let addresses: Vec<String> = overlay.addresses.iter().map(|(name, address)| format!("{name} {address}")).collect();
    assert_eq!(addresses, ["flannel0 10.5.1.0/32", "flannel0-v6 fd00:5:1::/128"]);
    let routes: Vec<String> = overlay.routes.iter().map(|(subnet, route)| format!("{subnet}{route}")).collect();
    assert_eq!(routes, ["10.5.0.0/16 dev flannel0", "fd00:5::/32 dev flannel0-v6"]);

    let Work::Udp(plans) = work(&backend, &own, &[good, bad]) else { panic!("no proxy") };
    let nodes = |plan: &flanneld_rs::backend::udp::Plan| {
        plan.nodes.iter().map(|(subnet, node)| format!("{subnet} at {node}")).collect::<Vec<_>>().join(", ")
    };
    let plans: Vec<String> =
        plans.iter().map(|plan| format!("{} {} {}: {}", plan.device, plan.bind, plan.own, nodes(plan))).collect();
    assert_eq!(
        plans,
        [
            "flannel0 192.168.0.1:7890 10.5.1.0/24: 10.5.2.0/24 at 192.168.0.2:7890",
            "flannel0-v6 [2001:db8::1]:7890 fd00:5:1::/64: fd00:5:2::/64 at [2001:db8::2]:7890",
        ]
    );
    assert_eq!(backend.mtu(&uplink(), &Family::ALL), 1452);
}

#[test]
fn ipip_has_flannels_device_and_routes_over_it_or_past_it() {
    let near = peer("ipip", &["10.5.2.0/24"], &["192.168.0.2"], None);
    let far = peer("ipip", &["10.5.3.0/24"], &["192.168.7.3"], None);
    for (config, routes) in [
        (
            r#"{"Type": "ipip"}"#,
            [
                "10.5.2.0/24 via 192.168.0.2 dev flannel.ipip onlink",
                "10.5.3.0/24 via 192.168.7.3 dev flannel.ipip onlink",
            ],
        ),
        (
            r#"{"Type": "ipip", "DirectRouting": true}"#,
            ["10.5.2.0/24 via 192.168.0.2 dev eth0", "10.5.3.0/24 via 192.168.7.3 dev flannel.ipip onlink"],
        ),
    ] {
        let backend = backend(config);
        let overlay = desired(&backend, &["10.5.1.0/24"], &[near.clone(), far.clone()]).overlay;
        let found: Vec<String> = overlay.routes.iter().map(|(subnet, route)| format!("{subnet}{route}")).collect();
        assert_eq!(found, routes);
        assert_eq!(overlay.links["flannel.ipip"].to_string(), "ipip local 192.168.0.1");
        assert_eq!(overlay.links["flannel.ipip"].mtu(), 1480);
        assert!(overlay.addresses.contains(&("flannel.ipip".into(), "10.5.1.0/32".parse().unwrap())));
        assert_eq!(work(&backend, &["10.5.1.0/24"], std::slice::from_ref(&near)), Work::None);
    }
}

#[test]
fn alloc_wants_nothing_and_leaves_the_routes_of_others_alone() {
    let backend = backend(r#"{"Type": "alloc"}"#);
    let peers = [peer("", &["10.5.2.0/24"], &["192.168.0.2"], None)];
    assert_eq!(desired(&backend, &["10.5.1.0/24"], &peers), Desired::default());
    assert_eq!(work(&backend, &["10.5.1.0/24"], &peers), Work::None);
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}"#).unwrap();
    assert_eq!(backend.scope(&config), kernel::Scope::default());
    let announced = backend.announcement(&uplink(), &[Family::V4]);
    assert_eq!(announced.to_json(), r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#);
}
