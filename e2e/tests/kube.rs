//! Clusters whose nodes get their subnets from Kubernetes: the API server goes away and comes back, nodes come late, and are
//! re-created. The API server is one in memory that lets the daemons do what flannel's ClusterRole allows, and nothing else.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::node::Node;
use e2e::pod::Pod;
use e2e::probe::ask;
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use serde_json::json;
use std::fs;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How soon anything is known to all, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

fn settings() -> Settings {
    Settings::new(Backend::Vxlan, Store::Kube).with(Families::Dual)
}

fn cluster(work: &WorkDir, nodes: usize) -> Cluster {
    Cluster::start(&settings(), work.path(), nodes, 1).unwrap_or_else(|error| panic!("{error}"))
}

fn reach(from: &Pod, to: &Pod) {
    assert_eq!((from.addresses.len(), to.addresses.len()), (2, 2));
    for (source, target) in from.addresses.iter().zip(&to.addresses) {
        let answer = eventually(LIMIT, || ask(from.sandbox.network(), *target, SECOND));
        assert_eq!(answer.unwrap_or_else(|error| panic!("{} to {}: {error}", from.name, to.name)).seen, *source);
    }
}

fn all_reach_all(cluster: &Cluster) {
    let pods: Vec<_> = cluster.pods().collect();
    pods.iter().for_each(|from| pods.iter().for_each(|to| reach(from, to)));
}

/// The machine has been off: what is not on disk is gone.
fn reboot(node: &Node) {
    fs::remove_dir_all(node.directory().join("run")).unwrap();
    fs::create_dir(node.directory().join("run")).unwrap();
    for device in ["flannel.1", "flannel-v6.1"] {
        oracle::ip(&node.host.network, &format!("link delete {device}")).unwrap();
    }
}

#[test]
fn pods_reach_each_other_and_nothing_is_written_twice() {
    let work = work();
    let mut cluster = cluster(&work, 3);
    all_reach_all(&cluster);
    let api = cluster.api().unwrap();
    let calls = api.calls();
    let patches: Vec<_> = calls.iter().filter(|call| call.method == "PATCH").map(|call| &call.path).collect();
    assert_eq!(patches.len(), 6, "annotations and condition of each node, once: {patches:?}");
    assert!(patches.iter().all(|path| path.ends_with("/status")));
    // Heartbeats, and a daemon that starts again: nothing to write, neither here nor there.
    (0..50).for_each(|_| api.heartbeat("node2"));
    let node = &mut cluster.nodes[0];
    assert!(node.stop_daemon().unwrap().success());
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    let calls = cluster.api().unwrap().calls();
    assert!(calls.iter().all(|call| call.method == "GET"), "{calls:?}");
}

#[test]
fn an_outage_of_the_api_server_harms_nobody() {
    let work = work();
    let mut cluster = cluster(&work, 2);
    all_reach_all(&cluster);
    // What a node goes by without the API server is on its disk, where a busy one has it some seconds later.
    for node in &cluster.nodes {
        let is_written = || {
            let text = fs::read_to_string(node.directory().join("state/last-known.json"))?;
            let is_known = |subnet: &str| text.contains(subnet);
            if is_known("10.42.1.0-24") && is_known("10.42.2.0-24") {
                Ok(())
            } else {
                Err("not all nodes are written down yet".into())
            }
        };
        eventually(LIMIT, is_written).unwrap();
    }
    let target = cluster.nodes[1].pods[0].address;
    let stream = Stream::start(cluster.nodes[0].pods[0].sandbox.network(), target, Duration::from_millis(2)).unwrap();
    cluster.api().unwrap().stop();
    for node in &mut cluster.nodes {
        node.kill_daemon().unwrap();
        node.start_daemon().unwrap();
        node.wait_ready().unwrap();
        assert!(node.health("/readyz").unwrap().1.contains("lease from memory"), "{:?}", node.health("/readyz"));
    }
    stream.wait_for_answers(100).unwrap();
    let report = stream.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
    // One of them has been off, and has its old pods no more: new ones come up all the same, and reach the other node.
    let node = &mut cluster.nodes[0];
    node.kill_daemon().unwrap();
    reboot(node);
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    node.add_pod("after-reboot").unwrap();
    reach(&cluster.nodes[0].pods[1], &cluster.nodes[1].pods[0]);
    // Back: who comes then is known to all.
    cluster.resume_api().unwrap();
    let late = cluster.add_node().unwrap();
    late.start_daemon().unwrap();
    late.wait_ready().unwrap();
    late.add_pod("late").unwrap();
    reach(&cluster.nodes[2].pods[0], &cluster.nodes[0].pods[1]);
    reach(&cluster.nodes[1].pods[0], &cluster.nodes[2].pods[0]);
    for node in &cluster.nodes {
        eventually(LIMIT, || match node.health("/readyz")? {
            (200, body) if !body.contains("lease") => Ok(()),
            other => Err(format!("{other:?}").into()),
        })
        .unwrap();
    }
}

#[test]
fn a_node_without_podcidr_says_so_and_is_no_sooner_ready_than_it_has_one() {
    let work = work();
    let mut cluster = Cluster::new(&settings(), work.path()).unwrap();
    let conflists = work.path().join("net.d");
    cluster.add_node().unwrap();
    let api = cluster.api().unwrap();
    api.put_node("node1", &[]);
    api.faults(|faults| faults.takes_events = true);
    let node = &mut cluster.nodes[0];
    node.add_flags(&["--cni-conf-dir", conflists.to_str().unwrap()]);
    node.start_daemon().unwrap();
    let waiting = || match node.health("/readyz")? {
        (503, body) if body.contains("podCIDR") && body.contains("--allocate-node-cidrs") => Ok(()),
        other => Err(format!("{other:?}").into()),
    };
    eventually(LIMIT, waiting).unwrap();
    assert!(!conflists.join("10-flannel.conflist").exists() && node.subnet_file().is_err());
    assert!(node.add_pod("too-early").is_err());
    let told = || cluster.api().unwrap().events().first().cloned().ok_or_else(|| "no event yet".into());
    let event = eventually(LIMIT, told).unwrap();
    assert!(event["message"].as_str().unwrap().contains("podCIDR"), "{event}");
    assert_eq!((&event["involvedObject"]["name"], &event["type"]), (&json!("node1"), &json!("Warning")));
    let api = cluster.api().unwrap();
    api.give("node1", &["10.42.9.0/24", "fd42:0:0:9::/64"]);
    let node = &mut cluster.nodes[0];
    node.wait_ready().unwrap();
    assert!(conflists.join("10-flannel.conflist").exists());
    let pod = node.add_pod("in-time").unwrap();
    assert!(pod.address.to_string().starts_with("10.42.9."), "{}", pod.address);
}

#[test]
fn a_node_that_is_re_created_is_followed() {
    let work = work();
    let mut cluster = cluster(&work, 2);
    all_reach_all(&cluster);
    let pid = cluster.nodes[1].daemon_pid();
    let first = cluster.nodes[0].host.network.try_clone().unwrap();
    let route = |subnet: &str| {
        let routes = oracle::ip_list(&first, "route show").unwrap();
        routes.iter().any(|route| route["dst"] == subnet)
    };
    let until = |subnet: &str, there: bool| {
        let look = || if route(subnet) == there { Ok(()) } else { Err(format!("{subnet}: not {there} yet").into()) };
        eventually(LIMIT, look).unwrap();
    };
    // Deleted by mistake: what it says of itself comes back with it. Meanwhile its subnet may be given to another node.
    cluster.api().unwrap().delete_node("node2");
    until("10.42.2.0/24", false);
    let withheld = || match cluster.nodes[1].subnet_file() {
        Err(_) => Ok(()),
        Ok(file) => Err(format!("pods still get addresses of {file:?}").into()),
    };
    eventually(LIMIT, withheld).unwrap();
    let node = &mut cluster.nodes[1];
    let refusal = node.add_pod("too-late").unwrap_err().to_string();
    assert!(refusal.contains("subnet.env"), "{refusal}");
    cluster.api().unwrap().put_node("node2", &["10.42.2.0/24", "fd42:0:0:2::/64"]);
    until("10.42.2.0/24", true);
    reach(&cluster.nodes[0].pods[0], &cluster.nodes[1].pods[0]);
    // Re-created with another subnet.
    cluster.api().unwrap().delete_node("node2");
    cluster.api().unwrap().put_node("node2", &["10.42.77.0/24", "fd42:0:0:77::/64"]);
    until("10.42.77.0/24", true);
    until("10.42.2.0/24", false);
    let node = &mut cluster.nodes[1];
    let moved = || match node.subnet_file()?.get("FLANNEL_SUBNET").map(String::as_str) {
        Some("10.42.77.1/24") => Ok(()),
        other => Err(format!("{other:?}").into()),
    };
    eventually(LIMIT, moved).unwrap();
    let pod = node.add_pod("in-time").unwrap();
    assert!(pod.address.to_string().starts_with("10.42.77."), "{}", pod.address);
    assert_eq!(node.daemon_pid(), pid, "the daemon goes on");
    let (_, notes) = node.health("/readyz").unwrap();
    assert!(notes.contains("10.42.2.0-24") && notes.contains("must be replaced"), "{notes}");
}

#[test]
fn an_administrators_address_is_what_the_others_send_to() {
    let work = work();
    let mut cluster = Cluster::new(&settings(), work.path()).unwrap();
    cluster.add_node().unwrap();
    let address = cluster.nodes[0].host.address;
    let prefix = "flannel.alpha.coreos.com";
    let api = cluster.api().unwrap();
    api.annotate("node1", &format!("{prefix}/node-public-ip"), "203.0.113.9");
    let node = &mut cluster.nodes[0];
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    let said = |name: &str| cluster.api().unwrap().node("node1").unwrap()["metadata"]["annotations"][name].clone();
    assert_eq!(said(&format!("{prefix}/public-ip")), json!("203.0.113.9"));
    // Packets leave from an address that the node has.
    let local = || -> e2e::Result<()> {
        let links = oracle::ip_list(&cluster.nodes[0].host.network, "-details link show flannel.1")?;
        let found = &links.first().ok_or("no device")?["linkinfo"]["info_data"]["local"];
        if *found == json!(address.to_string()) { Ok(()) } else { Err(format!("{found}").into()) }
    };
    eventually(LIMIT, local).unwrap();
    let api = cluster.api().unwrap();
    api.annotate("node1", &format!("{prefix}/public-ip-overwrite"), "203.0.113.10");
    let overwritten = || match said(&format!("{prefix}/public-ip")) {
        now if now == json!("203.0.113.10") => Ok(()),
        other => Err(format!("{other}").into()),
    };
    eventually(LIMIT, overwritten).unwrap();
}

#[test]
fn an_administrators_address_outlives_the_daemon_where_the_api_server_does_not() {
    let work = work();
    let mut cluster = Cluster::new(&Settings::new(Backend::Vxlan, Store::Kube), work.path()).unwrap();
    cluster.add_node().unwrap();
    cluster.nodes[0].find_uplink();
    // On another interface than the default route.
    let second = "198.51.100.1";
    let host = &cluster.nodes[0].host.network;
    for command in [
        "link add second type veth peer name second-peer",
        "link set second-peer up",
        "link set second up",
        &format!("address add {second}/24 dev second"),
    ] {
        oracle::ip(host, command).unwrap();
    }
    let api = cluster.api().unwrap();
    api.annotate("node1", "flannel.alpha.coreos.com/node-public-ip", second);
    let node = &mut cluster.nodes[0];
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    let device = |node: &Node| {
        let links = oracle::ip_list(&node.host.network, "-details link show flannel.1").unwrap();
        (links[0]["ifindex"].clone(), links[0]["linkinfo"]["info_data"]["local"].clone())
    };
    let before = device(node);
    assert_eq!(before.1, json!(second));
    let is_written = || match fs::read_to_string(node.directory().join("state/last-known.json"))? {
        text if text.contains(&format!(r#""public":["{second}"]"#)) => Ok(()),
        other => Err(other.into()),
    };
    eventually(LIMIT, is_written).unwrap();
    cluster.api().unwrap().stop();
    let node = &mut cluster.nodes[0];
    node.kill_daemon().unwrap();
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    assert_eq!(device(node), before, "the data path stays as it was");
}
