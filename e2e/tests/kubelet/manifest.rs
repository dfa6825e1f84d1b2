//! Nodes without a network, and the manifest.

use crate::stage::{
    DAEMON, LIMIT, MANIFEST, Pod, SECOND, cluster, dual_stack, everybody_sees_everybody, nothing_is_lost, pod, pods,
    ready_conditions, rolled_out, running, wait_for, wait_until_ready,
};
use e2e::kubernetes::{Kubernetes, Worker};
use e2e::probe::{ask, ask_at};
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;

#[test]
fn one_manifest_makes_a_pod_network_that_outlives_its_daemon_and_the_api_server() {
    let work = WorkDir::new().unwrap();
    let Some(mut cluster) = cluster(&work) else { return };
    for condition in ready_conditions(&cluster) {
        assert_eq!(condition["status"], "False", "a node is ready without a network: {condition}");
    }

    cluster.plane.apply(&dual_stack(MANIFEST)).unwrap();
    wait_until_ready(&cluster);
    rolled_out(&cluster, 2);

    let mut pods = pods(&cluster);
    everybody_sees_everybody(&cluster, &pods);
    host_port_leads_to_its_pod(&cluster, &pods);

    nothing_is_lost(&pods, "a rolling update", || {
        cluster.plane.kubectl(&["--namespace", "kube-flannel", "rollout", "restart", DAEMON]).unwrap();
        rolled_out(&cluster, 2);
    });
    nothing_is_lost(&pods, "an outage of the API server in which a daemon is killed", || {
        cluster.plane.kill().unwrap();
        let before = daemon(&cluster.workers[0]).expect("a daemon runs");
        cluster.workers[0].containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", &before]).unwrap();
        let again = || daemon(&cluster.workers[0]).filter(|now| *now != before).ok_or("no new daemon runs".into());
        eventually(LIMIT, again).unwrap_or_else(|error| panic!("{error}\n{}", cluster.workers[0].log()));
        cluster.plane.resume().unwrap();
    });
    rolled_out(&cluster, 2);
    a_node_is_made_again(&mut cluster, &mut pods);
}

/// The container of a node's daemon.
fn daemon(worker: &Worker) -> Option<String> {
    let filter = r#"labels."io.kubernetes.container.name"==kube-flannel"#;
    let containers = worker.containerd.ctr(&["containers", "list", "--quiet", filter]).ok()?;
    let tasks = worker.containerd.ctr(&["tasks", "list"]).ok()?;
    let runs = |id: &&str| tasks.lines().any(|line| line.starts_with(id) && line.contains("RUNNING"));
    containers.lines().find(runs).map(str::to_owned)
}

fn host_port_leads_to_its_pod(cluster: &Kubernetes, pods: &BTreeMap<String, Pod>) {
    let client = &pods["node1-1"];
    for address in &pods["node2-1"].addresses {
        let node = SocketAddr::new(cluster.workers[1].host.address_like(*address), 8007);
        eventually(5 * SECOND, || ask_at(&client.network, node, SECOND)).unwrap();
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
