//! Pods on several nodes over WireGuard: reached without NAT, in cipher text only, whatever happens to daemons and devices.
//! Where the kernel has no WireGuard, the daemon carries the packets: both are meant.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::probe::{ask, ask_tcp};
use e2e::stream::Stream;
use e2e::wiretap::Wiretap;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netns::Netns;
use serde_json::json;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// Generous for a loaded machine; a handshake that gets lost is repeated after 5 s.
const LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(1);
const PODS: &str = "10.42.0.0/16";
const PODS_OF_IPV6: &str = "fd42::/48";
const PORTS: [u16; 2] = [51820, 51821];

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

fn start(work: &WorkDir, store: Store, nodes: usize, pods: usize) -> Cluster {
    start_with(work, store, Families::V4, "separate", nodes, pods)
}

fn start_with(work: &WorkDir, store: Store, families: Families, mode: &str, nodes: usize, pods: usize) -> Cluster {
    if kernel::wireguard::WireGuard::open().unwrap().is_none() {
        e2e::not_tested("the kernel's own WireGuard: this kernel has none, and the daemons carry the packets");
    }
    let mut settings = Settings::new(Backend::WireGuard, store).with(families);
    settings.network["Backend"] =
        json!({"Type": "wireguard", "Mode": mode, "PSK": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="});
    Cluster::start(&settings, work.path(), nodes, pods).unwrap_or_else(|error| panic!("{error}"))
}

fn pair(cluster: &Cluster) -> (&Netns, IpAddr) {
    (cluster.nodes[0].pods[0].sandbox.network(), cluster.nodes[1].pods[0].address)
}

fn reached(pod: &Netns, target: IpAddr) {
    eventually(LIMIT, || ask(pod, target, Duration::from_millis(200))).unwrap();
}

#[test]
fn everybody_reaches_everybody() {
    for store in [Store::File, Store::Etcd] {
        let work = work();
        let cluster = start(&work, store, 3, 2);
        for from in cluster.pods() {
            for to in cluster.pods() {
                let answer = eventually(LIMIT, || ask(from.sandbox.network(), to.address, SECOND)).unwrap();
                assert_eq!(answer.seen, from.address, "UDP from {} to {}", from.name, to.name);
                let answer = ask_tcp(from.sandbox.network(), to.address, SECOND).unwrap();
                assert_eq!(answer.seen, from.address, "TCP from {} to {}", from.name, to.name);
            }
            for node in &cluster.nodes {
                let answer = ask(&node.host.network, from.address, SECOND);
                assert!(answer.is_ok(), "{} to {}: {answer:?}", node.host.name, from.name);
            }
        }
        let file = cluster.nodes[0].subnet_file().unwrap();
        assert_eq!(file["FLANNEL_MTU"], "1440", "60 bytes of IPv4, UDP and WireGuard");
    }
}

/// A tunnel for each family, one for both over either, and IPv6 alone; nothing in clear text, also after a restart and without
/// the device.
#[test]
fn both_families_and_ipv6_alone() {
    for (families, mode, store, device) in [
        (Families::Dual, "separate", Store::Etcd, "flannel-wg-v6"),
        (Families::Dual, "auto", Store::File, "flannel-wg"),
        (Families::Dual, "ipv6", Store::File, "flannel-wg"),
        (Families::V6, "separate", Store::Etcd, "flannel-wg-v6"),
    ] {
        let work = work();
        let mut cluster = start_with(&work, store, families, mode, 2, 1);
        let tap = Wiretap::start(cluster.fabric().network(), &[PODS, PODS_OF_IPV6], &PORTS).unwrap();
        let reach = |cluster: &Cluster| {
            for (from, to) in
                [(0, 1), (1, 0)].map(|(from, to)| (&cluster.nodes[from].pods[0], &cluster.nodes[to].pods[0]))
            {
                assert_eq!(from.addresses.len(), if families == Families::Dual { 2 } else { 1 });
                for (source, target) in from.addresses.iter().zip(&to.addresses) {
                    let pod = from.sandbox.network();
                    reached(pod, *target);
                    assert_eq!(ask(pod, *target, SECOND).unwrap().seen, *source, "{mode}, UDP to {target}");
                    assert_eq!(ask_tcp(pod, *target, SECOND).unwrap().seen, *source, "{mode}, TCP to {target}");
                }
            }
        };
        reach(&cluster);
        // 40 bytes of IPv6, and 40 of UDP and WireGuard: the pod network has one MTU.
        let mtu = cluster.nodes[0].subnet_file().unwrap()["FLANNEL_MTU"].clone();
        assert_eq!(mtu, "1420", "{families:?}, {mode}");
        assert!(cluster.nodes[1].stop_daemon().unwrap().success());
        cluster.nodes[1].start_daemon().unwrap();
        cluster.nodes[1].wait_ready().unwrap();
        oracle::ip(&cluster.nodes[0].host.network, &format!("link del {device}")).unwrap();
        reach(&cluster);
        let (clear, sealed) = tap.counts().unwrap();
        assert_eq!(clear, 0, "{families:?}, {mode}: pod packets on the underlay");
        assert!(sealed > 0);
    }
}

#[test]
fn no_pod_packet_leaves_in_clear_text() {
    let work = work();
    let mut cluster = start(&work, Store::File, 2, 2);
    let tap = Wiretap::start(cluster.fabric().network(), &[PODS], &PORTS).unwrap();
    let (pod, target) = pair(&cluster);
    let pod = pod.try_clone().unwrap();
    reached(&pod, target);
    let stream = Stream::start(&pod, target, INTERVAL).unwrap();
    stream.wait_for_answers(200).unwrap();

    // A daemon that is gone, with its device and without, and comes back.
    cluster.nodes[0].kill_daemon().unwrap();
    stream.wait_for_requests(200).unwrap();
    let node = cluster.nodes[0].host.network.try_clone().unwrap();
    oracle::ip(&node, "link del flannel-wg").unwrap();
    stream.wait_for_requests(200).unwrap();
    cluster.nodes[0].start_daemon().unwrap();
    cluster.nodes[0].wait_ready().unwrap();
    reached(&pod, target);

    // A peer that comes and goes, and comes back with another key.
    cluster.nodes[1].stop_daemon().unwrap();
    stream.wait_for_requests(100).unwrap();
    std::fs::remove_file(cluster.nodes[1].directory().join("wireguard.key")).unwrap();
    cluster.nodes[1].start_daemon().unwrap();
    cluster.nodes[1].wait_ready().unwrap();
    reached(&pod, target);

    // A device that goes while the daemon runs, and a pod of nobody.
    oracle::ip(&node, "link del flannel-wg").unwrap();
    reached(&pod, target);
    let report = stream.stop().unwrap();
    println!("{report:?}");
    // From a pod to which the kernel owes no such message of the last seconds: it sends one each two seconds to an address.
    let bystander = cluster.nodes[0].pods[1].sandbox.network();
    let told = ask_tcp(bystander, "10.42.250.1".parse().unwrap(), SECOND).unwrap_err().to_string();
    assert!(told.contains("unreachable") || told.contains("No route"), "a sender must be told: {told}");
    let (clear, sealed) = tap.counts().unwrap();
    assert_eq!(clear, 0, "pod packets on the underlay");
    assert!(sealed > 500, "{sealed} packets in cipher text");

    // The tap can hear: a packet that is sent past the tunnel is counted.
    oracle::ip(&node, "route add 10.42.200.0/24 via 192.168.50.1").unwrap();
    let _ = ask(&node, "10.42.200.1".parse().unwrap(), Duration::from_millis(100));
    eventually(SECOND, || match tap.counts()? {
        (0, _) => Err("nothing heard".into()),
        _ => Ok(()),
    })
    .unwrap();
}

#[test]
fn it_heals() {
    let work = work();
    let cluster = start(&work, Store::File, 2, 1);
    let (pod, target) = pair(&cluster);
    let node = &cluster.nodes[0].host.network;
    reached(pod, target);
    let peer = cluster.nodes[1].subnet_file().unwrap()["FLANNEL_SUBNET"].replace(".1/24", ".0/24");
    let healthy = picture(node).unwrap();
    for breakage in [
        "link del flannel-wg",
        "link set flannel-wg down",
        "link set flannel-wg mtu 1300",
        "address flush dev flannel-wg",
        &format!("route del {peer}"),
        &format!("route del unreachable {PODS}"),
        "link set eth0 down",
    ] {
        let start = Instant::now();
        oracle::ip(node, breakage).unwrap();
        if breakage == "link set eth0 down" {
            oracle::ip(node, "link set eth0 up").unwrap();
            oracle::ip(node, "route add default via 192.168.50.1 proto static").unwrap();
        }
        let healed = || match picture(node)? {
            now if now == healthy => Ok(()),
            now => Err(format!("{now}\ninstead of\n{healthy}").into()),
        };
        eventually(LIMIT, healed).unwrap_or_else(|error| panic!("after `ip {breakage}`: {error}"));
        reached(pod, target);
        println!("`ip {breakage}` healed after {:?}", start.elapsed());
    }
}

/// The device and the routes, in the words of iproute2.
fn picture(node: &Netns) -> e2e::Result<String> {
    let mut picture = String::new();
    for link in oracle::ip_list(node, "link show")? {
        if link["ifname"] == "flannel-wg" {
            picture += &format!("{} {} {}\n", link["ifalias"], link["mtu"], link["flags"]);
        }
    }
    for args in ["-4 address show", "route show"] {
        let mut lines: Vec<String> = Vec::new();
        for line in oracle::ip_list(node, args)? {
            let own = line["addr_info"].as_array().into_iter().flatten();
            lines.extend(own.map(|own| format!("{} {}/{}", line["ifname"], own["local"], own["prefixlen"])));
            lines.push(format!("{} {} {} {}", line["type"], line["dst"], line["dev"], line["metric"]));
        }
        lines.sort();
        picture += &lines.join("\n");
    }
    Ok(picture)
}

/// The packets go through the daemon where the kernel has no WireGuard: a restart is a gap, and a short one.
#[test]
fn a_restart_is_a_short_gap() {
    let work = work();
    let mut cluster = start(&work, Store::File, 2, 1);
    let (pod, target) = pair(&cluster);
    let pod = pod.try_clone().unwrap();
    let stream = Stream::start(&pod, target, INTERVAL).unwrap();
    let key = std::fs::read(cluster.nodes[1].directory().join("wireguard.key")).unwrap();
    for round in 0..4 {
        stream.wait_for_answers(100).unwrap();
        let node = &mut cluster.nodes[round % 2];
        if round < 2 {
            assert!(node.stop_daemon().unwrap().success());
        } else {
            node.kill_daemon().unwrap();
        }
        assert!(oracle::links(&node.host.network).unwrap().contains("flannel-wg"), "the device stays");
        node.start_daemon().unwrap();
        node.wait_ready().unwrap();
        reached(&pod, target);
    }
    let report = stream.stop().unwrap();
    println!("4 restarts: {report:?}");
    assert!(report.longest_outage < LIMIT, "{report:?}");
    assert_eq!(std::fs::read(cluster.nodes[1].directory().join("wireguard.key")).unwrap(), key);
}
