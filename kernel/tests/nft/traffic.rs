//! Packets through our rules.

use crate::fresh;
use crate::sample::{self, rule};
use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::nft::{Action, Chain, Family, Hook, HookKind, HookPoint, Match, Nft, Protocol, Table};
use kernel::sysctl;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A pod behind a node, and a host outside that knows no way to the pod network.
struct World {
    pod: Netns,
    node: Netns,
    outside: Netns,
}

struct Addresses {
    pod: IpNetwork,
    gateway: IpNetwork,
    node: IpNetwork,
    outside: IpNetwork,
    everything: IpNetwork,
}

impl World {
    fn new(addresses: &Addresses) -> Self {
        let world = World { pod: fresh(), node: fresh(), outside: fresh() };
        // Nobody waits for the detection of duplicate addresses.
        let no_detection = || sysctl::set("net.ipv6.conf.default.accept_dad", "0").unwrap();
        for namespace in [&world.pod, &world.node, &world.outside] {
            namespace.run(no_detection).unwrap();
        }
        world.cable("inner", addresses.gateway, &world.pod, addresses.pod);
        world.cable("outer", addresses.node, &world.outside, addresses.outside);
        let forwarding = match addresses.everything {
            IpNetwork::V4(_) => "net.ipv4.ip_forward",
            IpNetwork::V6(_) => "net.ipv6.conf.all.forwarding",
        };
        world.node.run(|| sysctl::set(forwarding, "1").unwrap()).unwrap();
        let mut netlink = Netlink::open_in(&world.pod).unwrap();
        let dev = netlink.link("eth0").unwrap().map(|link| link.index);
        let (dst, via) = (addresses.everything, Some(addresses.gateway.ip()));
        netlink.add_route(&RouteSpec { dst, via, dev, ..RouteSpec::default() }).unwrap();
        world
    }

    /// A cable from the node's device `name` to eth0 of `other`.
    fn cable(&self, name: &str, near: IpNetwork, other: &Netns, far: IpNetwork) {
        let mut node = Netlink::open_in(&self.node).unwrap();
        node.create_veth(&VethSpec::new(name, "eth0", other)).unwrap();
        let index = node.link(name).unwrap().unwrap().index;
        // A router asks for its neighbours from its link-local address.
        node.set_link(index, &LinkChange { link_local: Some(true), ..LinkChange::default() }).unwrap();
        node.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        node.add_address(index, near).unwrap();
        let mut other = Netlink::open_in(other).unwrap();
        let index = other.link("eth0").unwrap().unwrap().index;
        other.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        other.add_address(index, far).unwrap();
    }
}

/// The address that a server at `at` sees when the pod speaks to it.
fn source_seen(pod: &Netns, server: &Netns, at: IpAddr) -> Option<IpAddr> {
    let timeout = Some(Duration::from_millis(200));
    let server = server.run(|| UdpSocket::bind(SocketAddr::new(at, 7000)).unwrap()).unwrap();
    server.set_read_timeout(timeout).unwrap();
    let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let client = pod.run(|| UdpSocket::bind(SocketAddr::new(any, 0)).unwrap()).unwrap();
    // More than one, since the first packets of a new link may be lost.
    for _attempt in 0..10 {
        let _ = client.send_to(b"hello", SocketAddr::new(at, 7000));
        if let Ok((_, from)) = server.recv_from(&mut [0; 16]) {
            return Some(from.ip());
        }
    }
    None
}

fn masquerades(family: Family, addresses: &Addresses, cluster: &str, multicast: &str) {
    let world = World::new(addresses);
    let outside = addresses.outside.ip();
    assert_eq!(source_seen(&world.pod, &world.outside, outside), Some(addresses.pod.ip()), "without rules");
    let table = sample::masquerade(family, cluster, cluster, multicast);
    let mut nft = Nft::open_in(&world.node).unwrap();
    nft.replace(&table).unwrap();
    assert_eq!(source_seen(&world.pod, &world.outside, outside), Some(addresses.node.ip()), "pod to outside");
    // Were the server's network a part of the pod network, the pod's own address would be seen.
    let everything = addresses.everything.to_string();
    nft.replace(&sample::masquerade(family, &everything, cluster, multicast)).unwrap();
    assert_eq!(source_seen(&world.pod, &world.outside, outside), Some(addresses.pod.ip()), "pod to pod");
}

#[test]
fn the_outside_sees_the_node_and_pods_see_each_other_ipv4() {
    let addresses = Addresses {
        pod: sample::network("10.244.3.2/24"),
        gateway: sample::network("10.244.3.1/24"),
        node: sample::network("192.0.2.1/24"),
        outside: sample::network("192.0.2.9/24"),
        everything: sample::network("0.0.0.0/0"),
    };
    masquerades(Family::Ip, &addresses, "10.244.0.0/16", "224.0.0.0/4");
}

#[test]
fn the_outside_sees_the_node_and_pods_see_each_other_ipv6() {
    let addresses = Addresses {
        pod: sample::network("fd00:10:244:3::2/64"),
        gateway: sample::network("fd00:10:244:3::1/64"),
        node: sample::network("2001:db8::1/64"),
        outside: sample::network("2001:db8::9/64"),
        everything: sample::network("::/0"),
    };
    masquerades(Family::Ip6, &addresses, "fd00:10:244::/48", "ff00::/8");
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_that_the_map_has_for_it() {
    let world = World::new(&Addresses {
        pod: sample::network("10.244.3.8/24"),
        gateway: sample::network("10.244.3.1/24"),
        node: sample::network("192.0.2.1/24"),
        outside: sample::network("192.0.2.9/24"),
        everything: sample::network("0.0.0.0/0"),
    });
    let table = sample::host_ports();
    let mut nft = Nft::open_in(&world.node).unwrap();
    nft.replace(&table).unwrap();
    let server = world.pod.run(|| UdpSocket::bind("10.244.3.8:5353").unwrap()).unwrap();
    let client = world.outside.run(|| UdpSocket::bind("192.0.2.9:0").unwrap()).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    client.connect("192.0.2.1:53").unwrap();
    client.send(b"question").unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from, client.local_addr().unwrap(), "the pod sees who asks");
    server.send_to(b"answer", from).unwrap();
    client.recv(&mut [0; 16]).expect("the answer comes from the port that was asked");
    // Without the element a new connection ends at the node, where nobody listens.
    nft.remove_elements(&table, "ports", &table.sets["ports"].elements.iter().cloned().collect::<Vec<_>>()).unwrap();
    let client = world.outside.run(|| UdpSocket::bind("192.0.2.9:0").unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.connect("192.0.2.1:53").unwrap();
    client.send(b"question").unwrap();
    assert_eq!(client.recv(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

/// A table without which datagrams to port 7001 arrive.
fn deaf() -> Table {
    let drop = rule([Match::DestinationPort(Protocol::Udp, 7001)], Action::Drop, "deaf");
    let hook = Some(Hook::new(HookKind::Filter, HookPoint::Output, 0));
    let chains = vec![Chain { name: "output".into(), hook, rules: vec![drop] }];
    Table { name: "deaf".into(), chains, ..Table::default() }
}

#[test]
fn replacing_never_leaves_a_moment_without_the_table() {
    let namespace = fresh();
    let mut links = Netlink::open_in(&namespace).unwrap();
    links.set_link(1, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let at = SocketAddr::new(loopback, 7001);
    let server = namespace.run(|| UdpSocket::bind(at).unwrap()).unwrap();
    let client = namespace.run(|| UdpSocket::bind(SocketAddr::new(loopback, 0)).unwrap()).unwrap();
    server.set_nonblocking(true).unwrap();
    client.send_to(b"heard", at).unwrap();
    assert!(server.recv(&mut [0; 8]).is_ok(), "without the table it is heard");

    let table = deaf();
    let mut watcher = Nft::open_in(&namespace).unwrap();
    watcher.replace(&table).unwrap();
    let done = AtomicBool::new(false);
    let (polls, datagrams) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = Nft::open_in(&namespace).unwrap();
            for _round in 0..300 {
                writer.replace(&table).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let poller = scope.spawn(|| {
            let mut polls = 0;
            while !done.load(Ordering::Acquire) {
                assert!(watcher.is_intact(&table).unwrap(), "poll {polls}");
                polls += 1;
            }
            polls
        });
        let mut datagrams = 0;
        while !done.load(Ordering::Acquire) {
            // Dropped by the output hook: EPERM, or nothing.
            let _ = client.send_to(b"not heard", at);
            datagrams += 1;
        }
        (poller.join().unwrap(), datagrams)
    });
    assert!(server.recv(&mut [0; 16]).is_err(), "a datagram got through");
    assert!(polls > 10 && datagrams > 100, "{polls} polls and {datagrams} datagrams prove nothing");
}
