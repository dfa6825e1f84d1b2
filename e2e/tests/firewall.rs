//! Who sees which address of whom, and what is said where somebody else's firewall drops pods' packets.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::fabric::{Host, UPLINK};
use e2e::node::Node;
use e2e::probe::{ask, ask_tcp, serve};
use e2e::workdir::WorkDir;
use e2e::{Result, eventually, oracle, tools};
use kernel::netns::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How soon something is noticed, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

fn serve_in(network: &Netns) {
    std::thread::scope(|scope| {
        // The servers end with the process.
        scope.spawn(|| network.run(|| serve().unwrap()).unwrap()).join().unwrap();
    });
}

/// Two nodes with two pods each and a host outside, which knows the way to the pods of each node.
struct Scene {
    cluster: Cluster,
    outside: Host,
    _work: WorkDir,
}

impl Scene {
    fn new(settings: &Settings) -> Self {
        let work = work();
        let mut cluster = Cluster::start(settings, work.path(), 2, 2).unwrap_or_else(|error| panic!("{error}"));
        let outside = cluster.connect("outside").unwrap();
        for network in cluster.nodes.iter().map(|node| &node.host.network).chain([&outside.network]) {
            serve_in(network);
        }
        Scene { cluster, outside, _work: work }
    }

    /// What is seen at `target` of who asks from `network`, by UDP and by TCP.
    fn seen(network: &Netns, target: IpAddr) -> IpAddr {
        let answer = eventually(LIMIT, || ask(network, target, SECOND)).unwrap();
        let by_tcp = ask_tcp(network, target, SECOND).unwrap();
        assert_eq!(answer.seen, by_tcp.seen, "UDP and TCP differ at {target}");
        answer.seen
    }

    /// The address of a node that packets to other nodes' pods have, the first of its subnet on the tunnel.
    fn on_tunnel(node: &Node, v6: bool) -> IpAddr {
        let subnet = &node.subnet_file().unwrap()[if v6 { "FLANNEL_IPV6_SUBNET" } else { "FLANNEL_SUBNET" }];
        let subnet: ipnetwork::IpNetwork = subnet.parse().unwrap();
        subnet.network()
    }

    /// Every pair that the matrix has, with the address that is to be seen.
    fn matrix(&self, backend: Backend, direct: bool) {
        let [first, second] = &self.cluster.nodes[..] else { panic!("two nodes") };
        let (pod, neighbour, remote) = (&first.pods[0], &first.pods[1], &second.pods[0]);
        let from_pod = pod.sandbox.network();
        for (index, own) in pod.addresses.iter().enumerate() {
            let v6 = own.is_ipv6();
            let (node, other) = (first.host.address_like(*own), second.host.address_like(*own));
            let outside = self.outside.address_like(*own);
            let abroad = if direct { *own } else { node };
            let host = if backend == Backend::HostGw { node } else { Self::on_tunnel(first, v6) };
            for (what, network, target, seen) in [
                ("pod to pod of the same node", from_pod, neighbour.addresses[index], *own),
                ("pod to pod of another node", from_pod, remote.addresses[index], *own),
                ("pod to its node", from_pod, node, *own),
                ("pod to another node", from_pod, other, abroad),
                ("pod to outside", from_pod, outside, abroad),
                ("node to its pod", &first.host.network, *own, gateway(*own)),
                ("node to pod of another node", &first.host.network, remote.addresses[index], host),
            ] {
                assert_eq!(Self::seen(network, target), seen, "{backend}: {what}");
            }
            // From outside, to pods behind this node or behind another one.
            let way = |target: IpAddr| {
                let (program, length) = if v6 { ("-6", 128) } else { ("-4", 32) };
                let route = format!("{program} route replace {target}/{length} via {node}");
                oracle::ip(&self.outside.network, &route).unwrap();
            };
            way(*own);
            assert_eq!(Self::seen(&self.outside.network, *own), outside, "{backend}: outside to pod of the node");
            way(remote.addresses[index]);
            let seen = Self::seen(&self.outside.network, remote.addresses[index]);
            assert_eq!(seen, host, "{backend}: outside to pod of another node");
        }
    }
}

/// The bridge's address in the subnet of a pod, the first.
fn gateway(pod: IpAddr) -> IpAddr {
    match pod {
        IpAddr::V4(pod) => {
            let [a, b, c, _] = pod.octets();
            [a, b, c, 1].into()
        }
        IpAddr::V6(pod) => {
            let [a, b, c, d, ..] = pod.segments();
            [a, b, c, d, 0, 0, 0, 1].into()
        }
    }
}

#[test]
fn everybody_is_seen_by_the_right_address() {
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let scene = Scene::new(&Settings::new(backend, Store::File).with(Families::Dual));
        scene.matrix(backend, false);
    }
}

/// The underlay knows the way back to the pods; the nodes' own filters against foreign sources would not let them pass.
#[test]
fn pods_keep_their_addresses_where_they_are_known() {
    let mut settings = Settings::new(Backend::HostGw, Store::File).with(Families::Dual);
    settings.flags.extend(["--non-masquerade-cidrs".into(), "192.168.50.0/24,2001:db8:50::/64".into()]);
    let scene = Scene::new(&settings);
    for node in &scene.cluster.nodes {
        for pod in node.pods.iter().flat_map(|pod| &pod.addresses) {
            let way = format!("route replace {pod} via {}", node.host.address_like(*pod));
            oracle::ip(&scene.outside.network, &way).unwrap();
        }
    }
    let pod = &scene.cluster.nodes[0].pods[0];
    for own in &pod.addresses {
        let other = scene.cluster.nodes[1].host.address_like(*own);
        for target in [other, scene.outside.address_like(*own)] {
            assert_eq!(Scene::seen(pod.sandbox.network(), target), *own);
        }
    }
}

#[test]
fn one_family_alone_is_masqueraded_if_it_is_asked_for() {
    let mut settings = Settings::new(Backend::Vxlan, Store::File).with(Families::Dual);
    settings.flags = vec!["--ip-masq=ipv6".into(), "--iptables-forward-rules=ipv4".into()];
    let work = work();
    let cluster = Cluster::start(&settings, work.path(), 1, 0).unwrap();
    let list = |family: &str| {
        oracle::nft(&cluster.nodes[0].host.network, &format!("list table {family} flanneld-rs")).unwrap()
    };
    let (v4, v6) = (list("ip"), list("ip6"));
    assert!(!v4.contains("masquerade") && v4.contains("hook forward"), "{v4}");
    assert!(v6.contains("masquerade fully-random") && !v6.contains("hook forward"), "{v6}");
}

#[test]
fn what_the_kernel_lacks_for_services_is_told_until_it_has_it() {
    let work = work();
    let cluster = Cluster::start(&Settings::new(Backend::HostGw, Store::File), work.path(), 1, 0).unwrap();
    let node = &cluster.nodes[0];
    let key = "net/bridge/bridge-nf-call-iptables";
    // Each namespace has its own.
    let set = |value: &str| node.host.network.run(|| kernel::sysctl::set(key, value)).unwrap().unwrap();
    for (value, told) in [("0", true), ("1", false)] {
        set(value);
        eventually(LIMIT, || match node.health("/readyz")? {
            (200, body) if body.contains(&format!("{key} is 0")) == told => Ok(()),
            (status, body) => Err(format!("{value}: {status} {body}").into()),
        })
        .unwrap();
    }
}

/// Multicast goes out as it is, although it comes from an address of the pod network.
#[test]
fn multicast_is_not_masqueraded() {
    let work = work();
    let settings = Settings::new(Backend::Vxlan, Store::File);
    let mut cluster = Cluster::start(&settings, work.path(), 1, 0).unwrap();
    let outside = cluster.connect("outside").unwrap();
    let (group, node) = (Ipv4Addr::new(239, 1, 2, 3), &cluster.nodes[0]);
    let source = Scene::on_tunnel(node, false);
    let ear = outside
        .network
        .run(|| {
            let ear = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7009)).unwrap();
            ear.join_multicast_v4(&group, &outside.address).unwrap();
            ear.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            ear
        })
        .unwrap();
    let mouth = node.host.network.run(|| UdpSocket::bind(SocketAddr::new(source, 0)).unwrap()).unwrap();
    // Else it is the device that has the source's address.
    setsockopt(&mouth, sockopt::BindToDevice, &UPLINK.into()).unwrap();
    let heard = eventually(LIMIT, || {
        mouth.send_to(b"hear, hear", (group, 7009))?;
        Ok(ear.recv_from(&mut [0; 16])?.1)
    });
    assert_eq!(heard.unwrap().ip(), source);
}

/// What the daemon says of others' firewalls is what happens to packets, from the first drop to the remedy.
#[test]
fn a_firewall_that_drops_pods_is_named_until_it_lets_them_through() {
    let work = work();
    let settings = Settings::new(Backend::Vxlan, Store::File).with(Families::Dual);
    let cluster = Cluster::start(&settings, work.path(), 2, 1).unwrap();
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let says = |word: &str| -> Result<()> {
        eventually(LIMIT, || match first.health("/readyz")? {
            (200, body) if word.is_empty() && !body.contains("forwarding between pods") => Ok(()),
            (200, body) if !word.is_empty() && body.contains("forwarding between pods") && body.contains(word) => {
                Ok(())
            }
            (status, body) => Err(format!("{word:?}: {status} {body}").into()),
        })
    };
    let reaches = |index: usize| {
        let target = second.pods[0].addresses[index];
        ask_tcp(first.pods[0].sandbox.network(), target, Duration::from_millis(500)).is_ok()
    };
    let network = &first.host.network;
    let nft = |args: &str| oracle::nft(network, args).map(drop).unwrap();
    let iptables = |args: &str| {
        let args: Vec<&str> = args.split_whitespace().collect();
        oracle::tool(network, "/usr/sbin/iptables-nft", "iptables", &args).unwrap();
    };
    eventually(LIMIT, || if reaches(0) && reaches(1) { Ok(()) } else { Err("not yet".into()) }).unwrap();
    says("").unwrap();

    iptables("-P FORWARD DROP");
    says("table ip filter, chain FORWARD (policy drop)").unwrap();
    assert!(!reaches(0) && reaches(1));
    let body = first.health("/readyz").unwrap().1;
    assert!(body.contains("iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT") && !body.contains("fd42"), "{body}");
    let log = first.daemon_log();
    assert!(log.contains("WARN") && log.contains("chain FORWARD (policy drop)"), "{log}");
    // The remedy, as it is told.
    iptables("-I FORWARD -s 10.42.0.0/16 -j ACCEPT");
    iptables("-I FORWARD -d 10.42.0.0/16 -j ACCEPT");
    says("").unwrap();
    assert!(reaches(0));

    nft("add table inet guard");
    nft("add chain inet guard passing { type filter hook forward priority 10 ; policy accept ; }");
    nft("add rule inet guard passing ct state established,related accept");
    nft("add rule inet guard passing iifname cbr0 meta l4proto { tcp, udp } reject");
    says("table inet guard, chain passing (a rule that drops or rejects)").unwrap();
    says("nft insert rule inet guard passing ip6 saddr fd42::/48 accept").unwrap();
    assert!(!reaches(0) && !reaches(1));
    nft("delete table inet guard");
    says("").unwrap();
    assert!(reaches(0) && reaches(1));
}
