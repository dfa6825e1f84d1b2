//! What runtimes insert for the capabilities of the conventions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{IPV4, Node, eth0, ip};
use kernel::netns::Netns;
use serde_json::json;

/// What runtimes insert for the capabilities of the conventions (CONVENTIONS.md of the specification), and what they may say
/// that is for somebody else.
#[test]
fn capabilities_are_honoured_as_the_conventions_say() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let mut ranged = node.bridge("1.0.0", &[IPV4]);
    ranged["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.7.0.0/24", "rangeStart": "10.7.0.9"}]]});
    let mut native = node.native("1.0.0");
    native["args"] = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
    let given = json!({"mac": "02:00:00:00:00:42", "aliases": {"net": ["web"]}, "somethingNew": {"x": 1}});
    for (mut config, more, expected) in [
        (node.bridge("1.0.0", &[IPV4]), json!({"ips": ["10.9.0.77/24"]}), "10.9.0.77/24"),
        (native, json!({"ips": ["10.9.0.78/24"]}), "10.9.0.78/24"),
        (ranged.clone(), ranged["runtimeConfig"].clone(), "10.7.0.9/24"),
    ] {
        config["runtimeConfig"] = given.clone();
        config["dns"] = json!({"nameservers": ["10.9.0.1"], "search": ["shop.svc"]});
        config["runtimeConfig"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cni-plugin"));
        harness::with_environment(&mut command, "ADD", eth0("c1", &pod), &pod.path());
        let result = node.answer(command.env("CNI_ARGS", "IgnoreUnknown=1;TENANT=shop"), &config).unwrap();
        assert_eq!(result["ips"][0]["address"], expected, "{result}");
        assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:42", "{result}");
        assert_eq!(result["dns"], config["dns"]);
        node.check(eth0("c1", &pod), &config, &result).unwrap();
        node.del(eth0("c1", &pod), &config).unwrap();
        // The next one has another gateway.
        for bridge in ["br7", "cbr0"].into_iter().filter(|bridge| node.link(bridge).is_some()) {
            ip(&node.host, &format!("link del {bridge}"));
        }
        node.assert_clean(expected);
    }
}
