//! Nodes of kube-flannel that become ours one by one, and one that goes back.

use crate::stage::{
    LIMIT, MANIFEST, cluster, dual_stack, everybody_sees_everybody, nothing_is_lost, pod, pods, rolled_out, running,
    wait_for, wait_until_ready,
};
use e2e::fabric::UPLINK;
use e2e::kubernetes::{Kubernetes, Worker};
use e2e::process::{Process, Program};
use e2e::workdir::WorkDir;
use e2e::{eventually, not_tested, tools};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Only nodes with this label have our daemon.
const OURS: &str = "pod-network=ours";

#[test]
fn nodes_of_kube_flannel_are_taken_over_and_given_back() {
    let work = WorkDir::new().unwrap();
    let Some(cluster) = cluster(&work) else { return };
    if tools::go_flanneld().unwrap().is_none() {
        not_tested("kube-flannel's nodes taken over: no `flanneld` in PATH, and GO_FLANNELD names none");
        return;
    }
    let config = work.path().join("net-conf.json");
    let network = json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd42::/48",
        "Backend": {"Type": "vxlan"}});
    fs::write(&config, network.to_string()).unwrap();
    let [one, two] = cluster.workers.as_slice() else { panic!("two nodes") };
    let mut go: Vec<Process> = [one, two].map(|worker| kube_flannel(&cluster, worker, &config)).into();
    wait_until_ready(&cluster);
    let mut pods = pods(&cluster);
    everybody_sees_everybody(&cluster, &pods);
    let announced = announcements(&cluster);

    let selector = "kubernetes.io/os: linux\n";
    assert!(MANIFEST.contains(selector));
    let of_ours = dual_stack(MANIFEST).replace(selector, &format!("{selector}        pod-network: ours\n"));
    cluster.plane.apply(&of_ours).unwrap();
    for (number, worker) in [(1, two), (2, one)] {
        nothing_is_lost(&pods, "a node of kube-flannel taken over", || {
            // The last one in the list is the second node's.
            go.pop().unwrap().stop(LIMIT).unwrap();
            cluster.plane.kubectl(&["label", "node", &worker.host.name, OURS]).unwrap();
            rolled_out(&cluster, number);
        });
        // One more pod by the plugin that is installed now.
        cluster.plane.apply(&pod(&format!("{}-3", worker.host.name), &worker.host.name, false)).unwrap();
        running(&cluster, &mut pods);
        everybody_sees_everybody(&cluster, &pods);
        assert_eq!(announcements(&cluster), announced);
    }
    nothing_is_lost(&pods, "a node given back to kube-flannel", || {
        cluster.plane.kubectl(&["label", "node", "node2", "pod-network-"]).unwrap();
        rolled_out(&cluster, 1);
        let gone = || if runs(two) { Err("our daemon still runs".into()) } else { Ok(()) };
        eventually(LIMIT, gone).unwrap();
        go.push(kube_flannel(&cluster, two, &config));
        wait_for(&cluster, "kube-flannel does not say that it runs", |_| {
            fs::metadata(two.containerd.file("/run/flannel/subnet.env")).is_ok()
        });
    });
    cluster.plane.apply(&pod("node2-4", "node2", false)).unwrap();
    running(&cluster, &mut pods);
    everybody_sees_everybody(&cluster, &pods);
    assert_eq!(announcements(&cluster), announced);
}

/// Starts what kube-flannel's DaemonSet runs on a node, with the plugins and the conflist that it has there.
fn kube_flannel(cluster: &Kubernetes, worker: &Worker, config: &Path) -> Process {
    for name in ["flannel", "bridge", "host-local", "portmap", "loopback"] {
        fs::copy(tools::cni_plugin().unwrap(), worker.containerd.file("/opt/cni/bin").join(name)).unwrap();
    }
    let conflist = json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    let name = "10-flannel.conflist";
    fs::write(worker.containerd.file("/etc/cni/net.d").join(name), conflist.to_string()).unwrap();
    Program::new("go-flanneld", tools::go_flanneld().unwrap().unwrap())
        .args(["--kube-subnet-mgr", "--ip-masq", "--iface", UPLINK, "--net-config-path"])
        .args([config])
        .args(["--kubeconfig-file".as_ref(), cluster.plane.kubeconfig("admin").unwrap().as_os_str()])
        .env("NODE_NAME", &worker.host.name)
        .network(&worker.host.network)
        .machine(worker.containerd.machine())
        .start(config.parent().unwrap())
        .unwrap()
}

fn runs(worker: &Worker) -> bool {
    let filter = r#"labels."io.kubernetes.container.name"==kube-flannel"#;
    let containers = worker.containerd.ctr(&["containers", "list", "--quiet", filter]).unwrap();
    !containers.trim().is_empty()
}

/// What nodes tell each other.
fn announcements(cluster: &Kubernetes) -> Vec<(Value, Vec<(String, Value)>)> {
    let nodes = cluster.plane.get(&["nodes"]).unwrap();
    let nodes = nodes["items"].as_array().unwrap().iter().map(|node| {
        let annotations = node["metadata"]["annotations"].as_object().unwrap().iter();
        let ours = annotations.filter(|(name, _)| name.starts_with("flannel.alpha.coreos.com/"));
        (node["metadata"]["name"].clone(), ours.map(|(name, value)| (name.clone(), value.clone())).collect())
    });
    nodes.collect()
}
