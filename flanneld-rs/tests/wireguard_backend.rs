//! What the wireguard backend announces and desires: pure values, for every mode.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Desired, Means, Node};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::lease::{Announcement, Endpoint, Lease, LeaseTable};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use kernel::Tunnel;
use kernel::wireguard::{PublicKey, SecretKey, peers_of};

const OURS: PublicKey = PublicKey([1; 32]);
const THEIRS: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const PSK: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

fn uplink(v4: &str, v6: &str) -> Uplink {
    let way = |text: &str| {
        let local = text.parse().unwrap();
        Some(Way {
            interface: "eth0".into(),
            mtu: 1500,
            local,
            public: local,
            translated: false,
            on_link: Vec::new(),
            drivers: Default::default(),
        })
    };
    Uplink { ways: PerFamily { v4: way(v4), v6: way(v6) } }
}

fn parse(backend: &str) -> Result<NetworkConfig, String> {
    let config = format!(
        r#"{{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/56", "Backend": {backend}}}"#
    );
    NetworkConfig::parse(&config).map_err(|error| error.to_string())
}

fn backend(options: &str, in_kernel: bool) -> Backend {
    let means = Means { wireguard: Some((OURS, in_kernel)), ..Means::default() };
    Backend::new(&parse(&format!(r#"{{"Type": "wireguard"{options}}}"#)).unwrap(), means).unwrap()
}

fn subnets(texts: &[&str]) -> PerFamily<IpNetwork> {
    let parsed = texts.iter().map(|text| text.parse::<IpNetwork>().unwrap());
    parsed.map(|subnet| (Family::of(subnet.ip()), subnet)).collect()
}

fn peer(number: u8, public: [&str; 2], data: [&str; 2]) -> Lease {
    let endpoint = |(public, data): (&str, &str)| {
        let public_ip = public.parse().unwrap();
        (Family::of(public_ip), Endpoint { public_ip, data: Some(data.into()) })
    };
    let endpoints = public.into_iter().zip(data).map(endpoint).collect();
    let subnets = subnets(&[&format!("10.5.{number}.0/24"), &format!("fd00:5:0:{number}::/64")]);
    Lease { subnets, announcement: Announcement { backend_type: "wireguard".into(), endpoints } }
}

fn data(key: &str, port: u16) -> String {
    format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#)
}

fn desired(backend: &Backend, uplink: &Uplink, peers: &[Lease]) -> Desired {
    let own = Lease {
        subnets: subnets(&["10.5.1.0/24", "fd00:5:0:1::/64"]),
        announcement: backend.announcement(uplink, &Family::ALL),
    };
    let leases: LeaseTable = peers.iter().cloned().collect();
    let networks = subnets(&["10.5.0.0/16", "fd00:5::/56"]);
    backend.desired(&Node { networks: &networks, uplink, own: &own }, &leases)
}

#[test]
fn a_node_announces_what_flannel_reads() {
    let uplink = uplink("192.168.0.1", "fd00::1");
    let key = OURS.to_string();
    let announced = backend("", false).announcement(&uplink, &Family::ALL).to_json();
    let flannels = format!(
        r#"{{"PublicIP":"192.168.0.1","PublicIPv6":"fd00::1","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}},"BackendV6Data":{{"PublicKey":"{key}","Port":51821}}}}"#
    );
    assert_eq!(announced, flannels);
    // One device has one port, whatever the family.
    let one = backend(r#", "Mode": "auto", "ListenPort": 4500"#, false).announcement(&uplink, &Family::ALL);
    assert!(one.endpoints.iter().all(|(_, endpoint)| endpoint.data == Some(data(&key, 4500))), "{one:?}");
}

#[test]
fn separate_tunnels_have_a_device_for_each_family() {
    let psk = format!(r#", "PSK": "{PSK}", "PersistentKeepaliveInterval": 25"#);
    let lease = peer(2, ["192.168.0.2", "2001:db8::2"], [&data(THEIRS, 51820), &data(THEIRS, 0)]);
    for in_kernel in [false, true] {
        let backend = backend(&psk, in_kernel);
        let Desired { overlay, left_out, .. } =
            desired(&backend, &uplink("192.168.0.1", "2001:db8::1"), std::slice::from_ref(&lease));
        assert!(left_out.is_empty(), "{left_out:?}");
        let links: Vec<_> = overlay.links.iter().map(|(name, link)| (name.as_str(), link.mtu())).collect();
        assert_eq!(links, [("flannel-wg", 1440), ("flannel-wg-v6", 1420)]);
        assert!(overlay.links.values().all(|link| matches!(link, Tunnel::WireGuard(_)) == in_kernel));
        assert_eq!(backend.mtu(&uplink("192.168.0.1", "2001:db8::1"), &Family::ALL), 1420);
        let refused: Vec<String> = overlay.refusals.keys().map(ToString::to_string).collect();
        assert_eq!(refused, ["10.5.0.0/16", "fd00:5::/56"]);
        for (device, subnet, endpoint) in [
            ("flannel-wg", "10.5.2.0/24", "192.168.0.2:51820"),
            ("flannel-wg-v6", "fd00:5:0:2::/64", "[2001:db8::2]:51821"),
        ] {
            let subnet: IpNetwork = subnet.parse().unwrap();
            assert_eq!((overlay.routes[&subnet].dev.as_str(), overlay.routes[&subnet].via), (device, None));
            let peers = peers_of(&overlay, device);
            let peer = &peers[&THEIRS.parse().unwrap()];
            assert_eq!((peers.len(), peer.remote.endpoint, peer.remote.keepalive), (1, endpoint.parse().unwrap(), 25));
            assert_eq!(peer.remote.preshared_key, PSK.parse::<SecretKey>().ok());
            assert_eq!(peer.allowed, [subnet].into());
        }
    }
}

#[test]
fn one_tunnel_carries_both_families_over_the_likelier_one() {
    // flannel announces the port of a device that it has in separate mode only with the IPv6 data.
    let lease = |v4, v6| peer(2, [v4, v6], [&data(THEIRS, 51820), &data(THEIRS, 51821)]);
    for (mode, theirs, ours, endpoint, mtu) in [
        ("ipv4", ["192.168.0.2", "2001:db8::2"], ["192.168.0.1", "2001:db8::1"], "192.168.0.2:51820", 1440),
        ("ipv6", ["192.168.0.2", "2001:db8::2"], ["192.168.0.1", "2001:db8::1"], "[2001:db8::2]:51820", 1420),
        ("auto", ["192.168.0.2", "2001:db8::2"], ["192.168.0.1", "2001:db8::1"], "[2001:db8::2]:51820", 1420),
        ("auto", ["192.168.0.2", "fd01::2"], ["192.168.0.1", "2001:db8::1"], "192.168.0.2:51820", 1420),
        ("auto", ["192.168.0.2", "2001:db8::2"], ["192.168.0.1", "fd01::1"], "192.168.0.2:51820", 1420),
        ("auto", ["203.0.113.2", "2001:db8::2"], ["192.168.0.1", "2001:db8::1"], "203.0.113.2:51820", 1420),
    ] {
        let backend = backend(&format!(r#", "Mode": "{mode}""#), false);
        let Desired { overlay, left_out, .. } =
            desired(&backend, &uplink(ours[0], ours[1]), &[lease(theirs[0], theirs[1])]);
        assert!(left_out.is_empty(), "{left_out:?}");
        assert_eq!(overlay.links.keys().collect::<Vec<_>>(), ["flannel-wg"], "{mode}");
        assert_eq!(overlay.links["flannel-wg"].mtu(), mtu, "{mode}");
        let peers = peers_of(&overlay, "flannel-wg");
        let peer = &peers[&THEIRS.parse().unwrap()];
        assert_eq!((peers.len(), peer.allowed.len()), (1, 2), "{mode}");
        assert_eq!(peer.remote.endpoint, endpoint.parse().unwrap(), "{mode} {theirs:?} {ours:?}");
    }
}

#[test]
fn a_peer_that_makes_no_sense_is_left_out_with_the_reason() {
    let backend = backend("", false);
    let uplink = uplink("192.168.0.1", "2001:db8::1");
    let good = peer(2, ["192.168.0.2", "2001:db8::2"], [&data(THEIRS, 51820), &data(THEIRS, 51821)]);
    let alone = desired(&backend, &uplink, std::slice::from_ref(&good)).overlay;
    for (data, public, reason) in [
        (data(&OURS.to_string(), 1), ["192.168.0.3", "2001:db8::3"], "this node's own key"),
        (data("fish", 1), ["192.168.0.3", "2001:db8::3"], "no key of 32 bytes"),
        ("7".into(), ["192.168.0.3", "2001:db8::3"], "unusable backend data"),
        (data(THEIRS, 1), ["192.168.0.3", "2001:db8::3"], "is that of 192.168.0.2:51820"),
        (data(&PublicKey([9; 32]).to_string(), 1), ["10.5.77.3", "fd00:5::3"], "is inside the pod network"),
    ] {
        let desired = desired(&backend, &uplink, &[good.clone(), peer(3, public, [&data, &data])]);
        assert_eq!(desired.overlay, alone, "{reason}");
        assert!(desired.reasons()[0].contains(reason), "{:?} should say {reason}", desired.reasons());
    }
}

#[test]
fn settings_are_read_as_flannel_reads_them_and_no_secret_is_repeated() {
    for (wrong, word) in [
        (r#""Mode": "both""#, "Mode"),
        (r#""ListenPort": 70000"#, "ListenPort"),
        (r#""ListenPort": 51821"#, "ListenPortV6"),
        (r#""PersistentKeepaliveInterval": -1"#, "PersistentKeepaliveInterval"),
        (r#""MTU": 20"#, "MTU"),
        (r#""PSK": "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LC=""#, "PSK"),
    ] {
        let error = parse(&format!(r#"{{"Type": "wireguard", {wrong}}}"#)).unwrap_err();
        assert!(error.contains(word) && !error.contains("dwdt"), "{error}");
    }
    let config =
        parse(&format!(r#"{{"Type": "wireguard", "psk": "{PSK}", "mode": "ipv4", "LISTENPORT": 7}}"#)).unwrap();
    assert!(!format!("{config:?}").contains("dwdt"), "{config:?}");
    assert!(parse(r#"{"Type": "wireguard", "PSK": "", "Mode": "", "ListenPort": 0}"#).is_ok());
}
