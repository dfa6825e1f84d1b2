//! Who reaches a pod over a port of the node, and whom the pod sees.

use crate::world::{NODE, OUTSIDE, Pod, Stack, World, ask_tcp, ask_udp, mapping};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Both protocols on one port, at every address.
fn both() -> Value {
    json!([mapping(8080, 80, "tcp"), mapping(8080, 80, "UDP")])
}

/// What the pod sees of those who come by each way.
fn ways(world: &World) -> BTreeMap<String, Result<String, String>> {
    let web = Pod::start(world, "web", &both());
    let other = Pod::start(world, "other", &json!([]));
    if world.stack == Stack::Reference {
        // It returns while IPv6 addresses are still tentative.
        let settled = (0..10).any(|_| ask_tcp(&world.outside, NODE[1], 8080).is_ok());
        assert!(settled);
    }
    let gateways = ["10.9.0.1", "fd09::1"];
    let mut seen = BTreeMap::new();
    for family in [0, 1] {
        let mut ways = vec![
            ("outside", &world.outside, NODE[family]),
            ("node", &world.node.host, NODE[family]),
            ("node to its gateway address", &world.node.host, gateways[family]),
            ("another pod", &other.netns, NODE[family]),
            ("another pod to its gateway", &other.netns, gateways[family]),
            ("itself", &web.netns, NODE[family]),
            ("itself to its gateway", &web.netns, gateways[family]),
        ];
        if family == 0 {
            ways.push(("node to loopback", &world.node.host, "127.0.0.1"));
        }
        for (name, from, to) in ways {
            for (protocol, answer) in [("tcp", ask_tcp(from, to, 8080)), ("udp", ask_udp(from, to, 8080))] {
                let whom = answer.map(|(name, seen)| {
                    assert_eq!(name, "web");
                    seen.to_string()
                });
                seen.insert(format!("{name} by {protocol} over {to}"), whom);
            }
        }
    }
    seen
}

#[test]
fn every_way_is_open_and_shows_what_the_reference_plugin_shows() {
    let reference = ways(&World::new(Stack::Reference));
    for stack in [Stack::Chain, Stack::Native] {
        // Whether bridged packets go through the rules of IP, as kubeadm wants it.
        for through_ip in ["0", "1"] {
            let world = World::new(stack);
            world.sysctl("net/bridge/bridge-nf-call-iptables", through_ip);
            world.sysctl("net/bridge/bridge-nf-call-ip6tables", through_ip);
            let ours = ways(&world);
            for (way, answer) in &ours {
                assert!(answer.is_ok(), "{stack:?}, bridge-nf-call {through_ip}, {way}: {answer:?}");
            }
            assert_eq!(ours, reference, "{stack:?}, bridge-nf-call {through_ip}");
            assert_eq!(ours[&format!("outside by tcp over {}", NODE[0])], Ok(OUTSIDE[0].into()));
        }
    }
}

#[test]
fn a_host_address_is_the_only_one_with_the_port() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let at =
            |host: &str, port: u16| json!({"hostIP": host, "hostPort": port, "containerPort": 80, "protocol": "tcp"});
        let mappings = json!([
            at(NODE[0], 81),
            at("127.0.0.1", 82),
            at("0.0.0.0", 83),
            at("::", 84),
            at(NODE[1], 85),
            at("192.0.2.77", 86),
            at(&format!("::ffff:{}", NODE[0]), 87),
        ]);
        let _web = Pod::start(&world, "web", &mappings);
        let (outside, node) = (&world.outside, &world.node.host);
        let open = |from, to: &str, port| ask_tcp(from, to, port).is_ok();
        assert!(open(outside, NODE[0], 81) && open(node, NODE[0], 81) && !open(node, "127.0.0.1", 81));
        assert!(open(node, "127.0.0.1", 82) && !open(outside, NODE[0], 82) && !open(node, NODE[0], 82));
        assert!(open(outside, NODE[0], 83) && open(node, "127.0.0.1", 83) && !open(outside, NODE[1], 83));
        assert!(open(outside, NODE[1], 84) && !open(outside, NODE[0], 84));
        assert!(open(outside, NODE[1], 85) && !open(node, "fd09::1", 85));
        assert!(!open(outside, NODE[0], 86));
        assert!(open(outside, NODE[0], 87), "an IPv4 address in the form of an IPv6 one");
    }
}

/// The kernel never lets packets from ::1 leave the host, and has no switch for it: the port is closed there, at once.
#[test]
fn the_ipv6_loopback_address_refuses_at_once() {
    let world = World::new(Stack::Native);
    let _web = Pod::start(&world, "web", &both());
    let start = std::time::Instant::now();
    let answer = ask_tcp(&world.node.host, "::1", 8080);
    assert!(answer.as_ref().is_err_and(|error| error.contains("refused")), "{answer:?}");
    // A packet that is dropped instead is sent again after a second, and after three.
    assert!(start.elapsed() < Duration::from_millis(900));
}

#[test]
fn sources_are_replaced_as_asked() {
    for (options, from_outside, from_a_pod) in [
        (json!({"snat": false}), Some(OUTSIDE), None),
        (json!({"masqAll": true}), Some(["10.9.0.1", "fd09::1"]), Some(["10.9.0.1", "fd09::1"])),
        (json!({"snat": false, "masqAll": true}), Some(OUTSIDE), None),
        (json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), Some(OUTSIDE), Some(["10.9.0.1", "fd09::1"])),
        (json!({"markMasqBit": 7, "backend": "iptables"}), Some(OUTSIDE), Some(["10.9.0.1", "fd09::1"])),
    ] {
        let mut world = World::new(Stack::Chain);
        world.options = options.clone();
        world.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        world.sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
        let mut mappings = both();
        mappings.as_array_mut().unwrap().push(json!({"hostIP": NODE[0], "hostPort": 81, "containerPort": 80}));
        let web = Pod::start(&world, "web", &mappings);
        world.check(web.attachment(), &mappings, &web.result).unwrap();
        let other = Pod::start(&world, "other", &json!([]));
        let parsed =
            |addresses: Option<[&str; 2]>, family: usize| addresses.map(|a| a[family].parse::<IpAddr>().unwrap());
        for (family, address) in NODE.into_iter().enumerate() {
            for port in if family == 0 { vec![8080, 81] } else { vec![8080] } {
                let seen = |from| ask_tcp(from, address, port).ok().map(|(_, seen)| seen);
                assert_eq!(seen(&world.outside), parsed(from_outside, family), "{options}, outside, {address}");
                assert_eq!(seen(&other.netns), parsed(from_a_pod, family), "{options}, another pod, {address}");
            }
        }
        world.del(web.attachment(), &mappings).unwrap();
        world.assert_no_ports(&options.to_string());
    }
}

/// CVE-2020-8558: with route_localnet on the pods' device, a pod could speak to what listens at the node's 127.0.0.1.
#[test]
fn pods_do_not_reach_the_loopback_addresses_of_the_node() {
    let world = World::new(Stack::Native);
    let web = Pod::start(&world, "web", &both());
    let inside = world.node.host.enter().unwrap();
    let _private = TcpListener::bind("127.0.0.1:10250").unwrap();
    assert!(TcpStream::connect("127.0.0.1:10250").is_ok());
    drop(inside);
    // A pod with privileges sends them to its gateway all the same.
    crate::harness::ip(&web.netns, "addr del 127.0.0.1/8 dev lo");
    crate::harness::ip(&web.netns, "route add 127.0.0.0/8 via 10.9.0.1 dev eth0");
    web.netns.run(|| kernel::sysctl::set("net/ipv4/conf/all/route_localnet", "1").unwrap()).unwrap();
    let reached = |world: &World| {
        let _inside = web.netns.enter().unwrap();
        let _ = world;
        TcpStream::connect_timeout(&"127.0.0.1:10250".parse().unwrap(), Duration::from_millis(300)).is_ok()
    };
    assert!(!reached(&world));
    world.nft("delete chain ip cni-plugin-host-ports martians");
    assert!(reached(&world), "the test would not notice");
}
