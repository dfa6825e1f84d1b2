//! Nodes without a network, and the manifest.

use crate::stage::{
    DAEMON, LIMIT, MANIFEST, Pod, SECOND, cluster, dual_stack, everybody_sees_everybody, nothing_is_lost, pod, pods,
    ready_conditions, rolled_out, running, wait_for, wait_until_ready,
};
use e2e::kubernetes::{Kubernetes, Worker};
use e2e::probe::{ask, ask_at, http_get};
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Where the daemon of the manifest tells of its health.
const HEALTH: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8471));

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
    a_gated_pod_is_ready_once_its_gate_opens(&cluster);

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

/// A pod runs and has its network, and is ready when others say so, too.
fn a_gated_pod_is_ready_once_its_gate_opens(cluster: &Kubernetes) {
    let gate = "example.org/admitted";
    let mut gated: Value = serde_json::from_str(&pod("gated", "node1", false)).unwrap();
    gated["metadata"]["labels"]["app"] = "gated".into();
    gated["spec"]["readinessGates"] = json!([{"conditionType": gate}]);
    cluster.plane.apply(&gated.to_string()).unwrap();
    let condition = |cluster: &Kubernetes, name: &str| {
        let pod = cluster.plane.get(&["pod", "gated"]).unwrap();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == name).unwrap_or_default()
    };
    wait_for(cluster, "the gated pod does not run", |cluster| {
        condition(cluster, "ContainersReady")["status"] == "True"
    });
    assert_eq!(condition(cluster, "Ready")["reason"], "ReadinessGatesNotReady");
    let open = json!({"status": {"conditions": [{"type": gate, "status": "True"}]}}).to_string();
    cluster.plane.kubectl(&["patch", "pod", "gated", "--subresource", "status", "--patch", &open]).unwrap();
    wait_for(cluster, "the gate does not open", |cluster| condition(cluster, "Ready")["status"] == "True");
}

/// Somebody deletes a node, and it comes back under its name with another pod network.
fn a_node_is_made_again(cluster: &mut Kubernetes, pods: &mut BTreeMap<String, Pod>) {
    let node = |cluster: &Kubernetes| cluster.plane.get(&["node", "node2"]).unwrap();
    let before = node(cluster)["spec"]["podCIDRs"].clone();
    // While it has not found back to the API server, a daemon keeps the subnet that it knows of.
    let in_contact = || match cluster.workers[1].host.network.run(|| http_get(HEALTH, "/readyz"))?? {
        (200, body) if !body.contains("out of reach") => Ok(()),
        other => Err(format!("{other:?}").into()),
    };
    eventually(LIMIT, in_contact).unwrap();
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
