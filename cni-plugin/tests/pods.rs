//! Whose an attachment is: what the runtime tells of the pod is on record, whichever plugin attaches it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, Failure, IPV4, Node, eth0, ip, with_environment};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn args() -> String {
    let long = "x".repeat(254);
    format!(
        "IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID={long};\
         SOMETHING=else"
    )
}

fn call(node: &Node, verb: &str, attachment: Attachment<'_>, config: &Value) -> Result<Value, Failure> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-plugin"));
    with_environment(&mut command, verb, attachment, &attachment.netns.path()).env("CNI_ARGS", args());
    node.answer(&mut command, config)
}

/// Every record under a directory.
fn records(directory: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(records(&entry.path()));
        } else if let Ok(record) = serde_json::from_slice(&std::fs::read(entry.path()).unwrap_or_default()) {
            found.push(record);
        }
    }
    found
}

/// flannel's plugin, with what is handed on to a delegate.
fn flannel(node: &Node, delegate: Value) -> Value {
    let mut delegate = delegate;
    if delegate["type"] == "bridge" {
        delegate["attachmentsDir"] = node.attachments().display().to_string().into();
    }
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "flannel", "subnetFile": node.subnet_file(),
        "dataDir": node.dir.path().join("flannel"), "attachmentsDir": node.attachments(), "delegate": delegate,
        "ipam": {"dataDir": node.networks()},
    })
}

#[test]
fn every_way_to_attach_a_pod_tells_whose_it_is() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    node.write_subnet_file("10.9.0.1/24", None);
    ip(&node.host, "link add underlay type veth peer name beyond");
    ip(&node.host, "link set underlay up");
    let mut pair = node.bridge("1.0.0", &[IPV4]);
    pair["type"] = "ptp".into();
    for config in [
        node.native("1.0.0"),
        node.bridge("1.0.0", &[IPV4]),
        pair,
        flannel(&node, json!({"type": "bridge", "bridge": "br8", "isDefaultGateway": true})),
        flannel(&node, json!({"type": "macvlan", "master": "underlay"})),
    ] {
        let result = call(&node, "ADD", eth0("c1", &pod), &config).unwrap();
        let [record] = &records(&node.attachments())[..] else { panic!("one record: {config}") };
        assert_eq!(
            record["pod"],
            json!({"K8S_POD_NAME": "web-0", "K8S_POD_NAMESPACE": "shop", "K8S_POD_INFRA_CONTAINER_ID": "c1"})
        );
        let named = ["container", "interface", "network"].map(|key| record[key].as_str().unwrap());
        assert_eq!(named, ["c1", "eth0", "net"], "{config}");
        assert_eq!(Path::new(record["sandbox"].as_str().unwrap()), pod.path());
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
        assert_eq!(record["addresses"], json!([address]), "{config}");
        node.gc(&config, &[("c1", "eth0")]).unwrap();
        assert_eq!(records(&node.attachments()).len(), 1, "{config}");
        call(&node, "DEL", eth0("c1", &pod), &config).unwrap();
        assert_eq!(records(&node.attachments()), [Value::Null; 0], "{config}");
    }
}

/// One that was left behind goes with GC.
#[test]
fn gc_forgets_whose_it_was() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    node.write_subnet_file("10.9.0.1/24", None);
    ip(&node.host, "link add underlay type veth peer name beyond");
    ip(&node.host, "link set underlay up");
    let config = flannel(&node, json!({"type": "macvlan", "master": "underlay"}));
    call(&node, "ADD", eth0("c1", &pod), &config).unwrap();
    // Debian's plugins do not know the verb, and what is ours goes nevertheless.
    let _ = node.gc(&config, &[]);
    assert_eq!(records(&node.attachments()), [Value::Null; 0]);
}

/// Who asks for a port that is taken is told by which pod.
#[test]
fn a_port_that_is_taken_is_named_with_its_pod() {
    let (node, pods) = (Node::new(), [Netns::create().unwrap(), Netns::create().unwrap()]);
    let chained = |address: &str| {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap", "hostPortsDir": node.host_ports(),
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address}]},
        })
    };
    let mut native = node.native("1.0.0");
    native["runtimeConfig"] = chained("10.9.0.9/24")["runtimeConfig"].clone();
    for first in [native, chained("10.9.0.9/24")] {
        call(&node, "ADD", eth0("c1", &pods[0]), &first).unwrap();
        let taken = call(&node, "ADD", eth0("c2", &pods[1]), &chained("10.9.0.8/24")).unwrap_err();
        assert!(taken.code == 103 && taken.msg.contains("taken by pod shop/web-0, container c1"), "{taken:?}");
        call(&node, "DEL", eth0("c1", &pods[0]), &first).unwrap();
    }
}
