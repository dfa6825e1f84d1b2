//! The udp backend: packets through the daemons, in either family.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Settings, Store};
use e2e::node::Node;
use e2e::probe::{ask, ask_tcp};
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What the machine may take while it does other things; the daemon itself needs some 50 ms.
const HEAL_LIMIT: Duration = Duration::from_secs(5);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

/// Two nodes that have an address of each family.
fn cluster(work: &WorkDir, settings: &Settings) -> Cluster {
    let mut cluster = Cluster::new(settings, work.path()).unwrap();
    for number in 1..=2 {
        let node = cluster.add_node().unwrap();
        oracle::ip(&node.host.network, &format!("address add fd00:50::{number}/64 dev eth0 nodad")).unwrap();
        node.start_daemon().unwrap();
    }
    for node in &mut cluster.nodes {
        node.wait_ready().unwrap_or_else(|error| panic!("{error}"));
        node.add_pod(&format!("{}-pod", node.host.name)).unwrap();
    }
    cluster
}

fn v4(store: Store) -> Settings {
    Settings::new(Backend::Udp, store)
}

fn dual_stack(store: Store) -> Settings {
    let network = json!({"Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/48"});
    Settings { network, ..Settings::new(Backend::Udp, store) }
}

fn v6_only(store: Store) -> Settings {
    let network = json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:42::/48"});
    Settings { network, ..Settings::new(Backend::Udp, store) }
}

/// All addresses of a node's pod but link-local ones.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let list = oracle::ip_list(node.pods[0].sandbox.network(), "address show dev eth0 scope global").unwrap();
    // Older tools list what does not match as empty objects.
    let infos = list.iter().filter_map(|device| device["addr_info"].as_array()).flatten();
    infos.filter_map(|info| info["local"].as_str()).map(|local| local.parse().unwrap()).collect()
}

fn pods_reach_each_other(settings: &Settings, families: usize) {
    let work = work();
    let cluster = cluster(&work, settings);
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&cluster.nodes[from], &cluster.nodes[to]);
        let (ours, theirs) = (addresses(from), addresses(to));
        assert_eq!(theirs.len(), families, "{theirs:?}");
        for target in theirs {
            let pod = from.pods[0].sandbox.network();
            let answer = eventually(HEAL_LIMIT, || ask(pod, target, SECOND)).unwrap();
            assert!(ours.contains(&answer.seen), "{target} saw {} instead of {ours:?}", answer.seen);
            let answer = ask_tcp(pod, target, SECOND).unwrap();
            assert!(ours.contains(&answer.seen), "{target} saw {} instead of {ours:?}", answer.seen);
            // The node itself, from the address of its device.
            ask(&from.host.network, target, SECOND).unwrap();
        }
    }
}

#[test]
fn file_and_ipv4() {
    pods_reach_each_other(&v4(Store::File), 1);
}

#[test]
fn etcd_and_ipv4() {
    pods_reach_each_other(&v4(Store::Etcd), 1);
}

#[test]
fn file_and_both_families() {
    pods_reach_each_other(&dual_stack(Store::File), 2);
}

#[test]
fn etcd_and_both_families() {
    pods_reach_each_other(&dual_stack(Store::Etcd), 2);
}

#[test]
fn file_and_ipv6() {
    pods_reach_each_other(&v6_only(Store::File), 1);
}

/// The device with what is on it, in the words of Debian's tools.
fn picture(node: &Netns) -> e2e::Result<Value> {
    let mut link = oracle::ip_list(node, "-details link show dev flannel0")?;
    let link = link.pop().ok_or("no flannel0")?;
    let addresses = oracle::ip_list(node, "address show dev flannel0")?;
    let locals = addresses.iter().flat_map(|device| device["addr_info"].as_array().cloned().unwrap_or_default());
    let locals: Vec<String> = locals.map(|info| format!("{}/{}", info["local"], info["prefixlen"])).collect();
    let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")));
    Ok(json!({
        "kind": link["linkinfo"]["info_data"]["type"],
        "persist": link["linkinfo"]["info_data"]["persist"],
        "mtu": link["mtu"],
        "alias": link["ifalias"],
        "up": up,
        "addresses": locals,
        "routes": oracle::ip_list(node, "route show dev flannel0")?.iter().map(|route| {
            json!({"dst": route["dst"], "protocol": route["protocol"], "gateway": route["gateway"]})
        }).collect::<Vec<_>>(),
    }))
}

#[test]
fn the_device_is_flannels_and_heals() {
    let work = work();
    let cluster = cluster(&work, &v4(Store::File));
    let (pod, target) = (cluster.nodes[0].pods[0].sandbox.network(), cluster.nodes[1].pods[0].address);
    let node = &cluster.nodes[0].host.network;
    let subnet = cluster.nodes[0].subnet_file().unwrap()["FLANNEL_SUBNET"].clone();
    assert_eq!(cluster.nodes[0].subnet_file().unwrap()["FLANNEL_MTU"], "1472");
    let network_address = subnet.replace(".1/24", ".0");
    let wanted = json!({
        "kind": "tun",
        "persist": true,
        "mtu": 1472,
        "alias": "flanneld-rs",
        "up": true,
        "addresses": [format!("\"{network_address}\"/32")],
        "routes": [{"dst": "10.42.0.0/16", "protocol": "251", "gateway": null}],
    });
    let as_wanted = || match picture(node)? {
        now if now == wanted => Ok(()),
        now => Err(format!("{now:#}\ninstead of\n{wanted:#}").into()),
    };
    eventually(HEAL_LIMIT, as_wanted).unwrap();
    eventually(HEAL_LIMIT, || ask(pod, target, SECOND)).unwrap();
    for breakage in [
        "link del flannel0",
        "link set flannel0 down",
        "link set flannel0 mtu 1300",
        "address flush dev flannel0",
        "route del 10.42.0.0/16",
    ] {
        let start = Instant::now();
        oracle::ip(node, breakage).unwrap();
        eventually(HEAL_LIMIT, as_wanted).unwrap_or_else(|error| panic!("after {breakage}: {error}"));
        eventually(HEAL_LIMIT, || ask(pod, target, Duration::from_millis(100)))
            .unwrap_or_else(|error| panic!("after {breakage}: {error}"));
        println!("`ip {breakage}` healed after {:?}", start.elapsed());
    }
}

#[test]
fn a_restart_loses_what_is_sent_meanwhile_and_no_more() {
    let work = work();
    let mut cluster = cluster(&work, &v4(Store::File));
    let target = cluster.nodes[1].pods[0].address;
    eventually(HEAL_LIMIT, || ask(cluster.nodes[0].pods[0].sandbox.network(), target, SECOND)).unwrap();
    let stream = Stream::start(cluster.nodes[0].pods[0].sandbox.network(), target, Duration::from_millis(1)).unwrap();
    stream.wait_for_answers(50).unwrap();
    let index =
        |node: &Node| oracle::ip_list(&node.host.network, "link show dev flannel0").unwrap()[0]["ifindex"].clone();
    let before = index(&cluster.nodes[0]);
    for crash in [true, false] {
        let node = &mut cluster.nodes[0];
        if crash {
            node.kill_daemon().unwrap();
        } else {
            assert!(node.stop_daemon().unwrap().success());
        }
        // The way is still there: nothing leaks to the default route while nobody carries it.
        let routes = oracle::ip_list(&node.host.network, "route show dev flannel0").unwrap();
        assert_eq!(routes[0]["dst"], "10.42.0.0/16", "{routes:?}");
        node.start_daemon().unwrap();
        node.wait_ready().unwrap();
        assert_eq!(index(node), before);
        stream.wait_for_answers(50).unwrap();
    }
    let report = stream.stop().unwrap();
    println!("two restarts: {report:?}");
    assert!(report.lost < report.sent / 2, "{report:?}");
}

#[test]
fn who_asks_for_a_node_that_there_is_not_is_told() {
    let work = work();
    let cluster = cluster(&work, &dual_stack(Store::File));
    let pod = cluster.nodes[0].pods[0].sandbox.network();
    for nobody in ["10.42.255.9", "fd00:42:0:ffff::9"] {
        let nobody: IpAddr = nobody.parse().unwrap();
        // Linux ends an attempt to connect with what ICMP tells; whoever is not told times out.
        let error = pod.run(|| TcpStream::connect_timeout(&(nobody, 9).into(), HEAL_LIMIT).unwrap_err()).unwrap();
        assert!(
            matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable),
            "{nobody}: {error}"
        );
    }
}

#[test]
fn packets_from_strangers_for_others_are_not_taken_in() {
    let work = work();
    let mut cluster = cluster(&work, &v4(Store::File));
    let stranger = cluster.connect("stranger").unwrap();
    let target = cluster.nodes[1].host.address;
    let received = || -> u64 {
        let links = oracle::ip_list(&cluster.nodes[1].host.network, "-statistics link show dev flannel0").unwrap();
        links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    let before = received();
    // A valid header; to an address outside of the node's subnet, and damaged in its turn.
    let header = |destination: [u8; 4]| {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 9, 253, 0, 0, 192, 0, 2, 1];
        packet.extend(destination);
        packet
    };
    let own = cluster.nodes[1].pods[0].address;
    let IpAddr::V4(own) = own else { panic!("{own}") };
    let bad = [header([192, 0, 2, 7]), header([10, 42, 255, 1]), vec![0x45; 3], vec![0x60; 40], Vec::new()];
    let send = |packets: &[Vec<u8>]| {
        stranger
            .network
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for packet in packets {
                    socket.send_to(packet, (target, 8285)).unwrap();
                }
            })
            .unwrap();
    };
    send(&bad);
    // One that is for the node's own pod, to know that the others have been looked at.
    send(&[header(own.octets())]);
    eventually(HEAL_LIMIT, || match received() - before {
        0 => Err("nothing yet".into()),
        number => Ok(number),
    })
    .map(|number| assert_eq!(number, 1))
    .unwrap();
}
