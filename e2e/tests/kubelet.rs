//! A real Kubernetes with real nodes, where its programs are on this machine: its own API server, controllers, scheduler and
//! kubelets, and the manifest of this repository.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::image::{Image, Platform};
use e2e::kubernetes::{self, Kubernetes, Worker};
use e2e::probe::{ask, ask_at, ask_tcp};
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, not_tested, oracle, pause, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// Kubelets look at some things only every ten seconds, and start what ended only after ten.
const LIMIT: Duration = Duration::from_secs(90);
const INTERVAL: Duration = Duration::from_millis(1);
const MANIFEST: &str = include_str!("../../conf/kubernetes/flanneld-rs.yaml");
const DAEMON: &str = "daemonset/kube-flannel-ds";

#[test]
fn one_manifest_makes_a_pod_network_that_outlives_its_daemon_and_the_api_server() {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let missing = kubernetes::missing();
    if !missing.is_empty() {
        not_tested(&format!("a real Kubernetes: no {} in $KUBEBUILDER_ASSETS or PATH", missing.join(", ")));
        return;
    }
    let work = WorkDir::new().unwrap();
    let mut cluster = Kubernetes::start("10.244.0.0/16,fd42::/48", 2, work.path()).unwrap();
    for condition in ready_conditions(&cluster) {
        assert_eq!(condition["status"], "False", "a node is ready without a network: {condition}");
    }

    let image = work.path().join("image.tar");
    fs::write(&image, product().archive().unwrap()).unwrap();
    for worker in &cluster.workers {
        worker.containerd.import(&image).unwrap();
    }
    cluster.plane.apply(&dual_stack(MANIFEST)).unwrap();
    wait_for(&cluster, "the nodes are not ready", |cluster| {
        ready_conditions(cluster).iter().all(|condition| condition["status"] == "True")
    });
    rolled_out(&cluster);

    for node in 1..=2 {
        for number in 1..=2 {
            cluster
                .plane
                .apply(&pod(&format!("node{node}-{number}"), &format!("node{node}"), node == 2 && number == 1))
                .unwrap();
        }
    }
    let mut pods = BTreeMap::new();
    running(&cluster, &mut pods);
    everybody_sees_everybody(&cluster, &pods);
    host_port_leads_to_its_pod(&cluster, &pods);

    nothing_is_lost(&pods, "a rolling update", || {
        cluster.plane.kubectl(&["--namespace", "kube-flannel", "rollout", "restart", DAEMON]).unwrap();
        rolled_out(&cluster);
    });
    nothing_is_lost(&pods, "an outage of the API server in which a daemon is killed", || {
        cluster.plane.kill().unwrap();
        let before = daemon(&cluster.workers[0]).expect("a daemon runs");
        cluster.workers[0].containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", &before]).unwrap();
        let again = || daemon(&cluster.workers[0]).filter(|now| *now != before).ok_or("no new daemon runs".into());
        eventually(LIMIT, again).unwrap_or_else(|error| panic!("{error}\n{}", cluster.workers[0].log()));
        cluster.plane.resume().unwrap();
    });
    rolled_out(&cluster);
    a_node_is_made_again(&mut cluster, &mut pods);
}

/// The executables under test as the image of the manifest.
fn product() -> Image {
    let read = |path: &Path| fs::read(path).unwrap();
    let executables = vec![
        ("flanneld-rs".into(), read(&tools::flanneld().unwrap())),
        ("cni-plugin".into(), read(&tools::cni_plugin().unwrap())),
    ];
    let name = MANIFEST.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
    Image::of_product(name, vec![Platform { architecture: pause::ARCHITECTURE.into(), executables }])
}

/// The manifest with pods of both families.
fn dual_stack(manifest: &str) -> String {
    let v4 = r#""Network": "10.244.0.0/16","#;
    assert!(manifest.contains(v4));
    manifest.replace(v4, &format!(r#"{v4} "EnableIPv6": true, "IPv6Network": "fd42::/48","#))
}

fn pod(name: &str, node: &str, host_port: bool) -> String {
    let ports =
        if host_port { json!([{"containerPort": 7007, "hostPort": 8007, "protocol": "UDP"}]) } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "probe"}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "pause", "image": pause::IMAGE, "imagePullPolicy": "Never", "ports": ports}],
        },
    })
    .to_string()
}

fn ready_conditions(cluster: &Kubernetes) -> Vec<Value> {
    let nodes = cluster.plane.get(&["nodes"]).unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    let conditions = nodes.iter().flat_map(|node| node["status"]["conditions"].as_array().unwrap());
    conditions.filter(|condition| condition["type"] == "Ready").cloned().collect()
}

fn wait_for(cluster: &Kubernetes, what: &str, check: impl Fn(&Kubernetes) -> bool) {
    eventually(LIMIT, || if check(cluster) { Ok(()) } else { Err(what.into()) }).unwrap_or_else(|error| {
        let objects = cluster.plane.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output", "wide"]);
        let described = cluster.plane.kubectl(&["describe", "pods", "--all-namespaces"]);
        let logs: Vec<String> = cluster.workers.iter().map(Worker::log).collect();
        panic!("{error}\n{}\n{}\n{}", objects.unwrap(), described.unwrap(), logs.join("\n"))
    });
}

/// Every node has a daemon of the newest kind that is ready.
fn rolled_out(cluster: &Kubernetes) {
    wait_for(cluster, "the daemons are not ready", |cluster| {
        let set = cluster.plane.get(&["--namespace", "kube-flannel", DAEMON]).unwrap();
        let status = &set["status"];
        let wanted = &status["desiredNumberScheduled"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && *wanted == cluster.workers.len()
            && status["numberReady"] == *wanted
            && status["updatedNumberScheduled"] == *wanted
    });
}

/// The container of a node's daemon.
fn daemon(worker: &Worker) -> Option<String> {
    let filter = r#"labels."io.kubernetes.container.name"==kube-flannel"#;
    let containers = worker.containerd.ctr(&["containers", "list", "--quiet", filter]).ok()?;
    let tasks = worker.containerd.ctr(&["tasks", "list"]).ok()?;
    let runs = |id: &&str| tasks.lines().any(|line| line.starts_with(id) && line.contains("RUNNING"));
    containers.lines().find(runs).map(str::to_owned)
}

/// A pod that answers probes.
struct Pod {
    name: String,
    network: Netns,
    addresses: Vec<IpAddr>,
}

/// Adds the pods that are new, when all of them run.
fn running(cluster: &Kubernetes, pods: &mut BTreeMap<String, Pod>) {
    let list = || cluster.plane.get(&["pods", "--selector", "app=probe"]).unwrap()["items"].as_array().unwrap().clone();
    wait_for(cluster, "the pods do not run", |_| list().iter().all(|pod| pod["status"]["phase"] == "Running"));
    for pod in list() {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let addresses = pod["status"]["podIPs"].as_array().unwrap().iter();
        let addresses = addresses.map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect();
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        let worker = cluster.workers.iter().find(|worker| worker.host.name == node).unwrap();
        pods.entry(name.clone()).or_insert_with(|| Pod {
            network: worker.serve_probes(&name).unwrap(),
            name,
            addresses,
        });
    }
}

fn everybody_sees_everybody(cluster: &Kubernetes, pods: &BTreeMap<String, Pod>) {
    for from in pods.values() {
        assert_eq!(from.addresses.len(), 2, "{}: {:?}", from.name, from.addresses);
        for to in pods.values() {
            for (source, target) in from.addresses.iter().zip(&to.addresses) {
                let answer = eventually(5 * SECOND, || ask(&from.network, *target, SECOND)).unwrap();
                assert_eq!(answer.seen, *source, "UDP from {} to {}", from.name, to.name);
                let answer = ask_tcp(&from.network, *target, SECOND).unwrap();
                assert_eq!(answer.seen, *source, "TCP from {} to {}", from.name, to.name);
            }
        }
        for worker in &cluster.workers {
            for target in &from.addresses {
                eventually(5 * SECOND, || ask(&worker.host.network, *target, SECOND)).unwrap();
            }
        }
    }
}

fn host_port_leads_to_its_pod(cluster: &Kubernetes, pods: &BTreeMap<String, Pod>) {
    let client = &pods["node1-1"];
    for address in &pods["node2-1"].addresses {
        let node = SocketAddr::new(cluster.workers[1].host.address_like(*address), 8007);
        eventually(5 * SECOND, || ask_at(&client.network, node, SECOND)).unwrap();
    }
}

/// Between two pods of two nodes, in both families, during `work`.
fn nothing_is_lost(pods: &BTreeMap<String, Pod>, what: &str, work: impl FnOnce()) {
    let (from, to) = (&pods["node1-1"], &pods["node2-2"]);
    let streams = to.addresses.iter().map(|target| Stream::start(&from.network, *target, INTERVAL).unwrap());
    let streams: Vec<Stream> = streams.collect();
    work();
    for (stream, target) in streams.into_iter().zip(&to.addresses) {
        stream.wait_for_answers(100).unwrap();
        let report = stream.stop().unwrap();
        assert_eq!(report.lost, 0, "{what}, to {target}: {report:?}");
    }
}

/// Somebody deletes a node, and it comes back under its name with another pod network.
fn a_node_is_made_again(cluster: &mut Kubernetes, pods: &mut BTreeMap<String, Pod>) {
    let node = |cluster: &Kubernetes| cluster.plane.get(&["node", "node2"]).unwrap();
    let before = node(cluster)["spec"]["podCIDRs"].clone();
    cluster.workers[1].kill().unwrap();
    cluster
        .plane
        .kubectl(&["delete", "pods", "--selector", "app=probe", "--field-selector", "spec.nodeName=node2", "--force"])
        .unwrap();
    cluster.plane.kubectl(&["delete", "node", "node2"]).unwrap();
    // Takes the network that is free now.
    cluster
        .plane
        .apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}}).to_string())
        .unwrap();
    wait_for(cluster, "no pod network for another node", |cluster| {
        cluster.plane.get(&["node", "other"]).unwrap()["spec"]["podCIDRs"].is_array()
    });
    cluster.workers[1].resume().unwrap();
    wait_for(cluster, "the node does not come back", |cluster| {
        cluster.plane.get(&["node", "node2"]).is_ok_and(|node| node["spec"]["podCIDRs"].is_array())
    });
    assert_ne!(node(cluster)["spec"]["podCIDRs"], before);
    cluster.plane.apply(&pod("node2-3", "node2", false)).unwrap();
    running(cluster, pods);
    let (old, new) = (&pods["node1-1"], &pods["node2-3"]);
    for (source, target) in old.addresses.iter().zip(&new.addresses) {
        let answer = eventually(LIMIT, || ask(&old.network, *target, SECOND)).unwrap();
        assert_eq!(answer.seen, *source);
    }
    let routes = oracle::ip_list(&cluster.workers[0].host.network, "route show proto 251").unwrap();
    assert!(routes.iter().all(|route| route["dst"] != before[0]), "{before} is still routed: {routes:?}");
}
