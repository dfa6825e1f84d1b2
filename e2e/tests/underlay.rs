//! The underlay in all its forms: families on different interfaces, addresses that are translated on the way, MTUs that change,
//! cards that cannot be trusted with checksums. All of it may change while packets flow.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::fabric::{GATEWAY, UPLINK};
use e2e::node::Node;
use e2e::pod::Pod;
use e2e::probe::ask;
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netlink::{Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, sysctl};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// Generous: the machine may be busy with other tests. What is wanted is 2 s.
const LIMIT: Duration = Duration::from_secs(10);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

/// What iproute2 says of a device.
fn device(network: &Netns, name: &str) -> e2e::Result<serde_json::Value> {
    let mut found = oracle::ip_list(network, &format!("-details link show dev {name}"))?;
    found.pop().ok_or_else(|| format!("no device {name}").into())
}

fn mtu(network: &Netns, name: &str) -> e2e::Result<u64> {
    device(network, name)?["mtu"].as_u64().ok_or_else(|| format!("{name} has no MTU").into())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> e2e::Result<()> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found:?} instead of {wanted:?}").into()) }
}

/// IPv6 moves to a card that is put in while the daemon runs, and IPv4 notices nothing.
#[test]
fn a_family_moves_to_an_interface_of_its_own() {
    let work = work();
    let mut settings = Settings::new(Backend::Vxlan, Store::File).with(Families::Dual);
    settings.flags.push("--iface=eth1".into());
    let cluster = Cluster::start(&settings, work.path(), 2, 1).unwrap_or_else(|error| panic!("{error}"));
    let host = &cluster.nodes[0].host;
    let pod = cluster.nodes[0].pods[0].sandbox.network();
    let targets = &cluster.nodes[1].pods[0].addresses;
    let underlay = |name: &str| -> e2e::Result<(String, String)> {
        let data = &device(&host.network, name)?["linkinfo"]["info_data"];
        let local = data["local"].as_str().or(data["local6"].as_str()).unwrap_or_default();
        Ok((data["link"].as_str().unwrap_or_default().into(), local.into()))
    };
    let local = |example: &str| host.address_like(example.parse().unwrap()).to_string();
    let (v4, v6) = (local("0.0.0.0"), local("::"));
    assert_eq!(underlay("flannel.1").unwrap(), (UPLINK.into(), v4.clone()));
    assert_eq!(underlay("flannel-v6.1").unwrap(), (UPLINK.into(), v6.clone()));
    for target in targets {
        eventually(LIMIT, || ask(pod, *target, SECOND)).unwrap();
    }

    let stream = Stream::start(pod, *targets.iter().find(|target| target.is_ipv4()).unwrap(), Duration::from_millis(2));
    let stream = stream.unwrap();
    let before = device(&host.network, "flannel.1").unwrap()["ifindex"].clone();
    second_card(cluster.fabric().network(), &host.network);
    oracle::ip(&host.network, &format!("address del {v6}/64 dev {UPLINK}")).unwrap();
    oracle::ip(&host.network, &format!("address add {v6}/64 dev eth1 nodad")).unwrap();
    eventually(LIMIT, || expect("flannel-v6.1", underlay("flannel-v6.1")?, ("eth1".into(), v6.clone()))).unwrap();
    assert_eq!(underlay("flannel.1").unwrap(), (UPLINK.into(), v4));
    let target = *targets.iter().find(|target| target.is_ipv6()).unwrap();
    eventually(LIMIT, || ask(pod, target, SECOND)).unwrap();
    let report = stream.stop().unwrap();
    assert!(report.sent > 20, "{report:?}");
    assert!(report.longest_outage < SECOND / 2, "the move of IPv6 harms IPv4: {report:?}");
    assert_eq!(device(&host.network, "flannel.1").unwrap()["ifindex"], before, "the device of IPv4 was made anew");
    let log = cluster.nodes[0].daemon_log();
    assert!(log.contains("IPv6 underlay: eth1") && log.contains("chosen by --iface eth1 from eth0 ["), "{log}");
}

fn second_card(fabric: &Netns, host: &Netns) {
    let mut switch = Netlink::open_in(fabric).unwrap();
    let master = switch.link("switch0").unwrap().unwrap().index;
    switch
        .create_veth(&VethSpec {
            master: Some(master),
            up: true,
            peer_mac: Some(Mac::derive("card2")),
            ..VethSpec::new("card2", "eth1", host)
        })
        .unwrap();
    host.run(|| sysctl::set("net/ipv6/conf/eth1/accept_dad", "0").unwrap()).unwrap();
    oracle::ip(host, "link set eth1 up").unwrap();
}

/// The second node is known by an address that a router translates: it has none such itself. Its tunnel leaves checksums to
/// nobody then, whatever becomes of the device.
#[test]
fn a_node_behind_a_translator_is_reached() {
    let work = work();
    let mut cluster = Cluster::start(&Settings::new(Backend::Vxlan, Store::File), work.path(), 1, 1).unwrap();
    let router = cluster.fabric().network().try_clone().unwrap();
    router.run(|| sysctl::set("net/ipv4/ip_forward", "1").unwrap()).unwrap();
    let public = "203.0.113.2";
    let behind = cluster.add_node().unwrap();
    let private = behind.host.address;
    oracle::nft(&router, "add table ip nat").unwrap();
    oracle::nft(&router, "add chain ip nat pre { type nat hook prerouting priority -100 ; }").unwrap();
    oracle::nft(&router, &format!("add rule ip nat pre ip daddr {public} dnat to {private}")).unwrap();
    behind.add_flags(&["--public-ip", public]);
    behind.start_daemon().unwrap();
    behind.wait_ready().unwrap();
    behind.add_pod("behind").unwrap();

    let [front, behind] = &cluster.nodes[..] else { panic!("two nodes") };
    let (from, to) = (&front.pods[0], &behind.pods[0]);
    eventually(LIMIT, || ask(from.sandbox.network(), to.address, SECOND)).unwrap();
    eventually(LIMIT, || ask(to.sandbox.network(), from.address, SECOND)).unwrap();
    let entries = oracle::bridge(&front.host.network, "fdb show dev flannel.1").unwrap();
    assert!(entries.contains(&format!("dst {public} ")), "{entries}");
    let data = device(&behind.host.network, "flannel.1").unwrap()["linkinfo"]["info_data"].clone();
    assert_eq!(data["local"], json!(private.to_string()));
    assert_ne!(private, GATEWAY);

    let netlink = Netlink::open_in(&behind.host.network).unwrap();
    assert_eq!(netlink.tx_checksum("flannel.1").unwrap(), Some(false));
    let untouched = Netlink::open_in(&front.host.network).unwrap().tx_checksum("flannel.1").unwrap();
    assert_eq!(untouched, Some(true), "where nothing is known to be wrong");
    let is_off = || expect("checksum offload", netlink.tx_checksum("flannel.1")?, Some(false));
    netlink.set_tx_checksum("flannel.1", true).unwrap();
    eventually(LIMIT, is_off).unwrap();
    oracle::ip(&behind.host.network, "link del flannel.1").unwrap();
    eventually(LIMIT, is_off).unwrap();
    eventually(LIMIT, || ask(from.sandbox.network(), to.address, SECOND)).unwrap();
}

/// The underlay's MTU shrinks and grows while pods run. Devices, the subnet file and new pods follow; pods that run keep their
/// own MTU, are told by the node what is too large, and go on; the bridge has the smallest of its ports'.
fn pods_of_either_mtu_go_on(backend: Backend, v4: (&str, u64), v6: (&str, u64)) {
    let work = work();
    let settings = Settings::new(backend, Store::File).with(Families::Dual);
    let mut cluster = Cluster::start(&settings, work.path(), 2, 1).unwrap_or_else(|error| panic!("{error}"));
    let follows = |cluster: &Cluster, underlay: u64| {
        for node in &cluster.nodes {
            oracle::ip(&node.host.network, &format!("link set {UPLINK} mtu {underlay}")).unwrap();
        }
        for node in &cluster.nodes {
            eventually(LIMIT, || {
                for (name, overhead) in [v4, v6] {
                    expect(name, mtu(&node.host.network, name)?, underlay - overhead)?;
                }
                let file = node.subnet_file()?.remove("FLANNEL_MTU");
                expect("FLANNEL_MTU", file, Some((underlay - v6.1).to_string()))
            })
            .unwrap();
        }
    };
    let (small, usual) = (1400, 1500);
    follows(&cluster, usual);
    all_is_carried(&cluster);
    let port = |node: &Node, pod: &Pod| -> u64 {
        let eth0 = device(pod.sandbox.network(), "eth0").unwrap();
        let ends = oracle::ip_list(&node.host.network, "link show type veth master cbr0").unwrap();
        let host_end = ends.iter().find(|end| end["ifindex"] == eth0["link_index"]).unwrap();
        assert_eq!(host_end["mtu"], eth0["mtu"], "the two ends differ: what is larger than the other is lost");
        eth0["mtu"].as_u64().unwrap()
    };

    follows(&cluster, small);
    cluster.nodes[0].add_pod("new").unwrap();
    let node = &cluster.nodes[0];
    assert_eq!(node.pods.iter().map(|pod| port(node, pod)).collect::<Vec<_>>(), [usual - v6.1, small - v6.1]);
    assert_eq!(mtu(&node.host.network, "cbr0").unwrap(), small - v6.1);
    all_is_carried(&cluster);

    follows(&cluster, usual);
    assert_eq!(mtu(&cluster.nodes[0].host.network, "cbr0").unwrap(), small - v6.1, "a small pod is still there");
    all_is_carried(&cluster);
    cluster.nodes[0].remove_pod("new").unwrap();
    let node = &cluster.nodes[0].host.network;
    eventually(LIMIT, || expect("the bridge", mtu(node, "cbr0")?, usual - v6.1)).unwrap();
}

#[test]
fn pods_of_either_mtu_go_on_over_vxlan() {
    pods_of_either_mtu_go_on(Backend::Vxlan, ("flannel.1", 50), ("flannel-v6.1", 70));
}

#[test]
fn pods_of_either_mtu_go_on_over_wireguard() {
    pods_of_either_mtu_go_on(Backend::WireGuard, ("flannel-wg", 60), ("flannel-wg-v6", 80));
}

#[test]
fn pods_of_either_mtu_go_on_over_udp() {
    pods_of_either_mtu_go_on(Backend::Udp, ("flannel0", 28), ("flannel0-v6", 48));
}

/// More than fits in any window goes from every pod to every other, in both families, and comes back.
fn all_is_carried(cluster: &Cluster) {
    for (from, to) in cluster.pods().flat_map(|from| cluster.pods().map(move |to| (from, to))) {
        for target in to.addresses.iter().filter(|_| from.name != to.name) {
            let carried = echo(from.sandbox.network(), to.sandbox.network(), *target);
            carried.unwrap_or_else(|error| panic!("{} to {} at {target}: {error}", from.name, to.name));
        }
    }
}

/// 64 KiB there and back over TCP, which never lets its packets be fragmented.
fn echo(from: &Netns, to: &Netns, target: IpAddr) -> e2e::Result<()> {
    const BYTES: usize = 64 << 10;
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(target, 0)))??;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)
        });
        let client = || -> e2e::Result<()> {
            let mut stream = from.run(|| TcpStream::connect_timeout(&target, LIMIT))??;
            stream.set_read_timeout(Some(LIMIT))?;
            let sent: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
            stream.write_all(&sent)?;
            let mut got = vec![0; BYTES];
            stream.read_exact(&mut got)?;
            expect("what came back", got == sent, true)
        };
        let outcome = client();
        if outcome.is_err() {
            // The server waits for somebody.
            let _ = from.run(|| TcpStream::connect_timeout(&target, SECOND));
        }
        server.join().map_err(|_| "the server panicked")??;
        outcome
    })
}
