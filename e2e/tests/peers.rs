//! What the leases of other nodes do to a node, and what they must not: one that fails holds up no other, one family that is
//! wrong leaves the other alone, and what peers know of a node outlives everything on its disk.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::node::Node;
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netlink::Netlink;
use serde_json::{Value, json};
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Generous for a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

fn start(work: &WorkDir, settings: &Settings, nodes: usize) -> Cluster {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    Cluster::start(settings, work.path(), nodes, 1).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits for what /readyz answers.
fn wait_for_health(node: &Node, wanted: u16, named: &str) {
    eventually(LIMIT, || match node.health("/readyz")? {
        (status, body) if status == wanted && body.contains(named) => Ok(()),
        (status, body) => Err(format!("/readyz answers {status} {body}").into()),
    })
    .unwrap();
}

#[test]
fn one_that_fails_holds_up_no_other_and_is_told_until_it_is_mended() {
    let work = WorkDir::new().unwrap();
    let network =
        json!({"Network": "10.42.0.0/16", "SubnetLen": 24, "SubnetMin": "10.42.1.0", "SubnetMax": "10.42.9.0"});
    let cluster = start(&work, &Settings { network, ..Settings::new(Backend::Vxlan, Store::File) }, 1);
    let node = &cluster.nodes[0];
    let lease = |number: u8| {
        let data = json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{number:02x}")});
        let public = format!("192.168.50.{number}");
        let lease = json!({"PublicIP": public, "BackendType": "vxlan", "BackendData": data});
        cluster.put_lease(&format!("10.42.{number}.0-24"), Some(&lease)).unwrap();
    };
    // An administrator's route, which is none of ours to replace.
    oracle::ip(&node.host.network, "route add 10.42.200.0/24 via 192.168.50.1 proto static").unwrap();
    lease(200);
    wait_for_health(node, 503, "10.42.200.0/24");

    let mut netlink = Netlink::open_in(&node.host.network).unwrap();
    let mut longest = Duration::ZERO;
    for number in 201..=220 {
        let subnet = Ipv4Addr::new(10, 42, number, 0);
        lease(number);
        let start = Instant::now();
        eventually(LIMIT, || match netlink.lookup(subnet.into())?.via {
            Some(via) if via == subnet => Ok(()),
            via => Err(format!("{subnet} goes by {via:?}").into()),
        })
        .unwrap();
        longest = longest.max(start.elapsed());
    }
    println!("20 new nodes beside one that fails: at most {longest:?} each");
    wait_for_health(node, 503, "10.42.200.0/24");
    assert_eq!(node.health("/healthz").unwrap().0, 200, "a restart would not mend it");

    oracle::ip(&node.host.network, "route del 10.42.200.0/24").unwrap();
    wait_for_health(node, 200, "ok");
    let routes = oracle::ip_list(&node.host.network, "route show 10.42.200.0/24").unwrap();
    assert!(matches!(&routes[..], [route] if route["protocol"] == "251"), "{routes:?}");
}

#[test]
fn a_change_of_one_family_is_followed_and_a_broken_one_leaves_the_other_alone() {
    let work = WorkDir::new().unwrap();
    let settings = Settings::new(Backend::Vxlan, Store::File).with(Families::Dual);
    let mut cluster = start(&work, &settings, 2);
    // Its lease is ours to write now.
    cluster.nodes[1].stop_daemon().unwrap();
    let key = cluster.nodes[1].lease_key().unwrap();
    let mut lease: Value = serde_json::from_slice(&fs::read(cluster.leases().join(&key)).unwrap()).unwrap();
    let node = &cluster.nodes[0];
    let fdb = |device: &str| oracle::bridge(&node.host.network, &format!("fdb show dev {device}")).unwrap();
    let target = cluster.nodes[1].pods[0].addresses.iter().find(|address| address.is_ipv4()).copied().unwrap();
    let stream = Stream::start(node.pods[0].sandbox.network(), target, Duration::from_millis(1)).unwrap();
    let before = fdb("flannel.1");

    let new = "02:00:00:00:00:66";
    lease["BackendV6Data"]["VtepMAC"] = json!(new);
    cluster.put_lease(&key, Some(&lease)).unwrap();
    eventually(LIMIT, || match fdb("flannel-v6.1") {
        entries if entries.contains(&format!("{new} dst 2001:db8:50::")) => Ok(()),
        entries => Err(entries.into()),
    })
    .unwrap();
    let neighbours = oracle::ip_list(&node.host.network, "-6 neigh show dev flannel-v6.1 nud permanent").unwrap();
    assert!(matches!(&neighbours[..], [neighbour] if neighbour["lladdr"] == new), "{neighbours:?}");

    lease["BackendV6Data"]["VtepMAC"] = json!("fish");
    cluster.put_lease(&key, Some(&lease)).unwrap();
    eventually(LIMIT, || match fdb("flannel-v6.1") {
        entries if entries.contains(" dst ") => Err(entries.into()),
        _ => Ok(()),
    })
    .unwrap();
    // A node is ready with a peer that cannot be reached in one family; people are told.
    wait_for_health(node, 200, "fish");
    assert_eq!(fdb("flannel.1"), before);
    let report = stream.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn what_peers_know_of_a_node_outlives_its_disk_and_its_devices() {
    let work = WorkDir::new().unwrap();
    let mut cluster = start(&work, &Settings::new(Backend::Vxlan, Store::Etcd).with(Families::Dual), 1);
    let node = &mut cluster.nodes[0];
    let identity = |node: &Node| {
        let links = oracle::ip_list(&node.host.network, "link show").unwrap();
        let address = |name: &str| links.iter().find(|link| link["ifname"] == name).unwrap()["address"].clone();
        (address("flannel.1"), address("flannel-v6.1"), node.subnet_file().unwrap())
    };
    let before = identity(node);
    node.kill_daemon().unwrap();
    for device in ["flannel.1", "flannel-v6.1"] {
        oracle::ip(&node.host.network, &format!("link del {device}")).unwrap();
    }
    fs::remove_dir_all(node.directory().join("state")).unwrap();
    fs::remove_file(node.directory().join("run/subnet.env")).unwrap();
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    assert_eq!(identity(node), before);
}
