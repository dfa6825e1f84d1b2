//! A cluster, its pods, and what is looked at in each test.

use e2e::image::{Image, Platform};
use e2e::kubernetes::{self, Kubernetes, Worker};
use e2e::probe::{ask, ask_tcp};
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, not_tested, pause, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Kubelets look at some things only every ten seconds, and start what ended only after ten.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
const INTERVAL: Duration = Duration::from_millis(1);
pub(crate) const MANIFEST: &str = include_str!("../../../conf/kubernetes/flanneld-rs.yaml");
pub(crate) const DAEMON: &str = "daemonset/kube-flannel-ds";

/// Two nodes that have the image of the executables under test, and no network; None where there is no Kubernetes.
pub(crate) fn cluster(work: &WorkDir) -> Option<Kubernetes> {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let missing = kubernetes::missing();
    if !missing.is_empty() {
        not_tested(&format!("a real Kubernetes: no {} in $KUBEBUILDER_ASSETS or PATH", missing.join(", ")));
        return None;
    }
    let cluster = Kubernetes::start("10.244.0.0/16,fd42::/48", 2, work.path()).unwrap();
    let image = work.path().join("image.tar");
    fs::write(&image, product().archive().unwrap()).unwrap();
    for worker in &cluster.workers {
        worker.containerd.import(&image).unwrap();
    }
    Some(cluster)
}

/// Two pods on each node; the first one of the second node has a host port.
pub(crate) fn pods(cluster: &Kubernetes) -> BTreeMap<String, Pod> {
    for node in 1..=2 {
        for number in 1..=2 {
            let (name, node) = (format!("node{node}-{number}"), format!("node{node}"));
            cluster.plane.apply(&pod(&name, &node, name == "node2-1")).unwrap();
        }
    }
    let mut pods = BTreeMap::new();
    running(cluster, &mut pods);
    pods
}

pub(crate) fn wait_until_ready(cluster: &Kubernetes) {
    wait_for(cluster, "the nodes are not ready", |cluster| {
        ready_conditions(cluster).iter().all(|condition| condition["status"] == "True")
    });
}

/// The executables under test as the image of the manifest.
pub(crate) fn product() -> Image {
    let read = |path: &Path| fs::read(path).unwrap();
    let executables = vec![
        ("flanneld-rs".into(), read(&tools::flanneld().unwrap())),
        ("cni-plugin".into(), read(&tools::cni_plugin().unwrap())),
    ];
    let name = MANIFEST.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
    Image::of_product(name, vec![Platform { architecture: pause::ARCHITECTURE.into(), executables }])
}

/// The manifest with pods of both families.
pub(crate) fn dual_stack(manifest: &str) -> String {
    let v4 = r#""Network": "10.244.0.0/16","#;
    assert!(manifest.contains(v4));
    manifest.replace(v4, &format!(r#"{v4} "EnableIPv6": true, "IPv6Network": "fd42::/48","#))
}

pub(crate) fn pod(name: &str, node: &str, host_port: bool) -> String {
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

pub(crate) fn ready_conditions(cluster: &Kubernetes) -> Vec<Value> {
    let nodes = cluster.plane.get(&["nodes"]).unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    let conditions = nodes.iter().flat_map(|node| node["status"]["conditions"].as_array().unwrap());
    conditions.filter(|condition| condition["type"] == "Ready").cloned().collect()
}

pub(crate) fn wait_for(cluster: &Kubernetes, what: &str, check: impl Fn(&Kubernetes) -> bool) {
    eventually(LIMIT, || if check(cluster) { Ok(()) } else { Err(what.into()) }).unwrap_or_else(|error| {
        let objects = cluster.plane.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output", "wide"]);
        let described = cluster.plane.kubectl(&["describe", "pods", "--all-namespaces"]);
        let logs: Vec<String> = cluster.workers.iter().map(Worker::log).collect();
        panic!("{error}\n{}\n{}\n{}", objects.unwrap(), described.unwrap(), logs.join("\n"))
    });
}

/// So many nodes, all that are to have one, have a daemon of the newest kind that is ready.
pub(crate) fn rolled_out(cluster: &Kubernetes, nodes: usize) {
    wait_for(cluster, "the daemons are not ready", |cluster| {
        let set = cluster.plane.get(&["--namespace", "kube-flannel", DAEMON]).unwrap();
        let status = &set["status"];
        let wanted = &status["desiredNumberScheduled"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && *wanted == nodes
            && status["numberReady"] == *wanted
            && status["updatedNumberScheduled"] == *wanted
    });
}

/// A pod that answers probes.
pub(crate) struct Pod {
    name: String,
    pub(crate) network: Netns,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Adds the pods that are new, when all of them run.
pub(crate) fn running(cluster: &Kubernetes, pods: &mut BTreeMap<String, Pod>) {
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

pub(crate) fn everybody_sees_everybody(cluster: &Kubernetes, pods: &BTreeMap<String, Pod>) {
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

/// Between two pods of two nodes, in both families, during `work`.
pub(crate) fn nothing_is_lost(pods: &BTreeMap<String, Pod>, what: &str, work: impl FnOnce()) {
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
