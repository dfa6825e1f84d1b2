//! CHECK: silent about pods that are as ADD left them, and about those only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{IPV4, IPV6, Node, Plugins, eth0, host_end, ip};
use kernel::netns::Netns;
use serde_json::{Value, json};

/// How to damage an attachment: commands of ip(8) for the node and for the pod (`VETH` is the host end), and what the
/// message must say.
const DAMAGE: &[(&[&str], &[&str], &str)] = &[
    (&[], &["link set eth0 down"], "eth0 in the sandbox is down"),
    (&[], &["link del eth0"], "eth0 is missing in the sandbox"),
    (&[], &["link set eth0 down", "link set eth0 name eth9"], "eth0 is missing in the sandbox"),
    (&[], &["link set eth0 address 02:00:00:00:00:99"], "02:00:00:00:00:99"),
    (&[], &["link set eth0 mtu 1300"], "MTU 1300 instead of 1400"),
    (&[], &["addr del 10.9.0.2/24 dev eth0"], "lacks the address 10.9.0.2/24"),
    (&[], &["addr del fd09::2/64 dev eth0"], "lacks the address fd09::2/64"),
    (&[], &["addr add 10.9.0.77/24 dev eth0"], "foreign address 10.9.0.77/24"),
    (&[], &["addr add fd09::77/64 dev eth0"], "foreign address fd09::77/64"),
    (&[], &["route del default"], "lacks the route to 0.0.0.0/0 via 10.9.0.1"),
    (&[], &["-6 route del default"], "lacks the route to ::/0 via fd09::1"),
    (&[], &["route replace default via 10.9.0.9"], "lacks the route to 0.0.0.0/0 via 10.9.0.1"),
    (&[], &["route replace default dev eth0"], "lacks the route to 0.0.0.0/0 via 10.9.0.1"),
    (&["link del br7"], &[], "bridge br7 is missing"),
    (&["link set br7 down"], &[], "bridge br7 is down"),
    (&["addr del 10.9.0.1/24 dev br7"], &[], "br7 lacks the gateway address 10.9.0.1"),
    (&["addr del fd09::1/64 dev br7"], &[], "br7 lacks the gateway address fd09::1"),
    (&["link set VETH nomaster"], &[], "VETH is not attached to bridge br7"),
    (&["link set VETH down"], &[], "VETH is down"),
    (&["link set VETH mtu 1300"], &[], "VETH has MTU 1300 instead of 1400"),
    (&["link set VETH type bridge_slave hairpin off"], &[], "VETH should have hairpin mode on"),
    (&["link set VETH name veth9"], &[], "VETH is missing"),
    (
        &["neigh replace 10.9.0.2 lladdr 02:00:00:00:00:77 dev br7 nud permanent"],
        &[],
        "neighbour entry for 10.9.0.2 on br7 is 02:00:00:00:00:77",
    ),
];

#[test]
fn every_damage_is_named() {
    for version in ["0.4.0", "1.1.0"] {
        for (on_node, in_pod, expected) in DAMAGE {
            let (node, pod) = (Node::new(), Netns::create().unwrap());
            let config = node.bridge(version, &[IPV4, IPV6]);
            let result = node.add(eth0("c1", &pod), &config).unwrap();
            node.check(eth0("c1", &pod), &config, &result).unwrap();
            let named = |text: &str| text.replace("VETH", host_end(&result));
            on_node.iter().for_each(|command| drop(ip(&node.host, &named(command))));
            in_pod.iter().for_each(|command| drop(ip(&pod, &named(command))));
            let failure = node.check(eth0("c1", &pod), &config, &result).expect_err(expected);
            assert_eq!(failure.code, 102, "{failure:?}");
            assert!(failure.msg.contains(&named(expected)), "{on_node:?} {in_pod:?}: {}", failure.msg);
        }
    }
}

#[test]
fn a_lost_or_stolen_address_is_named() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    let record = node.networks().join("net/10.9.0.2");
    std::fs::write(&record, "somebody\r\neth0").unwrap();
    let failure = node.check(eth0("c1", &pod), &config, &result).unwrap_err();
    assert!(failure.msg.contains("10.9.0.2") && failure.msg.contains("somebody"), "{failure:?}");
    std::fs::remove_file(&record).unwrap();
    let failure = node.check(eth0("c1", &pod), &config, &result).unwrap_err();
    assert!(failure.msg.contains("10.9.0.2"), "{failure:?}");
}

#[test]
fn an_untouched_pod_is_in_order() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        for subnets in [&[IPV4][..], &[IPV6], &[IPV4, IPV6]] {
            let (node, pod) = (Node::new(), Netns::create().unwrap());
            let mut config = node.bridge(version, subnets);
            config["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}]);
            if subnets.len() == 1 {
                config["ipam"]["routes"].as_array_mut().unwrap().remove(usize::from(subnets[0] == IPV4));
            }
            let result = node.add(eth0("c1", &pod), &config).unwrap();
            node.check(eth0("c1", &pod), &config, &result).unwrap_or_else(|e| panic!("{version} {subnets:?}: {e:?}"));
        }
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let config = node.native(version);
        let result = node.add(eth0("c1", &pod), &config).unwrap();
        node.check(eth0("c1", &pod), &config, &result).unwrap();
    }
}

/// libcni hands over a result of 1.1.0 in the version of the list, where it has lost its MTUs.
#[test]
fn a_result_that_went_through_an_older_version_will_do() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let mut result = node.add(eth0("c1", &pod), &node.bridge("1.1.0", &[IPV4, IPV6])).unwrap();
    result["cniVersion"] = "0.4.0".into();
    for interface in result["interfaces"].as_array_mut().unwrap() {
        interface.as_object_mut().unwrap().remove("mtu");
    }
    result["ips"][0]["version"] = "4".into();
    result["ips"][1]["version"] = "6".into();
    node.check(eth0("c1", &pod), &node.bridge("0.4.0", &[IPV4, IPV6]), &result).unwrap();
}

/// Later plugins of the chain add to the result what is none of ours.
#[test]
fn what_another_plugin_added_is_its_own_business() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.1.0", &[IPV4]);
    let mut result = node.add(eth0("c1", &pod), &config).unwrap();
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "wg0", "sandbox": pod.path()}));
    result["ips"].as_array_mut().unwrap().push(json!({"address": "10.200.0.2/32", "interface": 3}));
    node.check(eth0("c1", &pod), &config, &result).unwrap();
}

#[test]
fn two_interfaces_of_a_pod_are_both_in_order() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4, IPV6]);
    let second = harness::Attachment { ifname: "net1", ..eth0("c1", &pod) };
    let results = [eth0("c1", &pod), second].map(|attachment| node.add(attachment, &config).unwrap());
    assert_ne!(results[0]["ips"], results[1]["ips"]);
    for (attachment, result) in [eth0("c1", &pod), second].into_iter().zip(&results) {
        node.check(attachment, &config, result).unwrap();
    }
    node.del(eth0("c1", &pod), &config).unwrap();
    node.check(second, &config, &results[1]).map(drop).unwrap_or_else(|failure| {
        // The default route was the first interface's.
        assert!(failure.msg.contains("lacks the route") && !failure.msg.contains("address"), "{failure:?}");
    });
    node.del(second, &config).unwrap();
    node.assert_clean("both deleted");
}

/// The reference's pods have host ends with random names, and no neighbour entries.
#[test]
fn a_pod_of_the_reference_plugin_is_in_order() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let result = node.call(Plugins::Reference, "ADD", eth0("c1", &pod), &config).unwrap();
    node.check(eth0("c1", &pod), &config, &result).unwrap();
    ip(&node.host, &format!("link set {} nomaster", host_end(&result)));
    let failure = node.check(eth0("c1", &pod), &config, &result).unwrap_err();
    assert!(failure.msg.contains(host_end(&result)), "{failure:?}");
}

/// After the daemon got another subnet, old pods go on in the old one.
#[test]
fn a_pod_of_an_earlier_subnet_is_in_order() {
    let (node, old, new) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.native("1.1.0");
    let result: Value = node.add(eth0("c1", &old), &config).unwrap();
    node.write_subnet_file("10.9.7.1/24", Some("fd09:7::1/64"));
    node.add(eth0("c2", &new), &config).unwrap();
    node.check(eth0("c1", &old), &config, &result).unwrap();
}
