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

/// Everything that `flannel-rs` does by itself.
fn everything(node: &Node, version: &str) -> Value {
    let mut config = node.native(version);
    config["ipMasq"] = true.into();
    config["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
    config["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 10_000_000, "egressRate": 10_000_000},
    });
    config
}

fn sh(netns: &Netns, script: &str) {
    let _inside = netns.enter().unwrap();
    let output = std::process::Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// As [`DAMAGE`], as scripts (`IFB` is the device that limits), of what only `flannel-rs` makes.
const NATIVE_DAMAGE: &[(&str, &str, &str)] = &[
    (
        "nft 'delete element ip cni-plugin-host-ports ports { tcp . 8080 }'",
        "",
        "host port tcp 0.0.0.0:8080 -> 10.9.0.2:80",
    ),
    ("nft delete table ip6 cni-plugin-host-ports", "", "the rules of nft table ip6 cni-plugin-host-ports are missing"),
    ("nft 'delete element inet cni-masquerade-net pods4 { 10.9.0.2 }'", "", "cni-masquerade-net lacks 10.9.0.2"),
    ("nft delete table inet cni-masquerade-net", "", "nft table inet cni-masquerade-net is missing"),
    (
        "nft flush chain inet cni-masquerade-net postrouting",
        "",
        "cni-masquerade-net is missing, or its rules were changed",
    ),
    ("tc qdisc del dev VETH root", "", "VETH has no limit instead of a limit of 10000000 bit/s"),
    ("tc qdisc del dev VETH ingress", "", "what comes in by VETH is not redirected to IFB"),
    ("tc qdisc replace dev IFB root tbf rate 20mbit burst 20k limit 40k", "", "IFB has a limit of 20000000 bit/s"),
    ("ip link del IFB", "", "IFB, which limits what comes from the pod, is missing"),
    ("ip link set IFB down", "", "IFB is down"),
    (
        "",
        "echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_filter",
        "sysctl net.ipv4.conf.eth0.arp_filter is \"0\", not \"1\"",
    ),
];

#[test]
fn every_damage_to_what_one_call_made_is_named() {
    for (on_node, in_pod, expected) in NATIVE_DAMAGE {
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let config = everything(&node, "1.0.0");
        let result = node.add(eth0("c1", &pod), &config).unwrap();
        node.check(eth0("c1", &pod), &config, &result).unwrap();
        let ifb = result["interfaces"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap();
        let named = |text: &str| text.replace("VETH", host_end(&result)).replace("IFB", ifb);
        sh(&node.host, &named(on_node));
        sh(&pod, &named(in_pod));
        let failure = node.check(eth0("c1", &pod), &config, &result).expect_err(expected);
        assert_eq!(failure.code, 102, "{failure:?}");
        assert!(failure.msg.contains(&named(expected)), "{on_node} {in_pod}: {}", failure.msg);
        assert!(failure.details.contains("undo the change"), "{failure:?}");
        node.del(eth0("c1", &pod), &config).unwrap();
        node.assert_clean(on_node);
    }
}

#[test]
fn all_that_one_call_made_is_in_order() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let (node, pod, other) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
        let config = everything(&node, version);
        let result = node.add(eth0("c1", &pod), &config).unwrap();
        node.check(eth0("c1", &pod), &config, &result).unwrap_or_else(|failure| panic!("{version}: {failure:?}"));
        // What is none of the pod's business.
        for command in
            ["link add up0 type veth peer name up1", "link set up0 up", "link set up0 mtu 1300", "link set lo down"]
        {
            ip(&node.host, command);
        }
        node.add(eth0("c2", &other), &node.native(version)).unwrap();
        sh(&node.host, "nft add table inet somebody");
        node.check(eth0("c1", &pod), &config, &result).unwrap_or_else(|failure| panic!("{version}: {failure:?}"));
    }
}

#[test]
fn another_namespace_is_not_taken_for_the_pods() {
    let (node, pod, other) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    node.add(eth0("c2", &other), &config).unwrap();
    let failure = node.check(eth0("c1", &other), &config, &result).unwrap_err();
    for words in ["lacks the address 10.9.0.2/24", "foreign address 10.9.0.3/24", "CNI_NETNS"] {
        assert!(failure.code == 102 && failure.msg.contains(words), "{words}: {failure:?}");
    }
}

#[test]
fn what_point_to_point_links_and_guards_lack_is_named() {
    for (kind, damage, expected) in [
        ("ptp", "ip route del 10.9.0.2", "the host lacks the route to 10.9.0.2 dev VETH"),
        ("ptp", "ip addr del 10.9.0.1/32 dev VETH", "VETH lacks the gateway address 10.9.0.1"),
        (
            "bridge",
            "nft flush set bridge cni-macspoof guarded",
            "set guarded of nft table bridge cni-macspoof lacks \"VETH\"",
        ),
        ("bridge", "nft delete table bridge cni-macspoof", "nft table bridge cni-macspoof is missing"),
    ] {
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let mut config = node.bridge("1.0.0", &[IPV4]);
        config["type"] = kind.into();
        config["macspoofchk"] = (kind == "bridge").into();
        let result = node.add(eth0("c1", &pod), &config).unwrap();
        node.check(eth0("c1", &pod), &config, &result).unwrap();
        let end = attachment_end(&result, kind);
        sh(&node.host, &damage.replace("VETH", end));
        let failure = node.check(eth0("c1", &pod), &config, &result).expect_err(expected);
        assert!(failure.code == 102 && failure.msg.contains(&expected.replace("VETH", end)), "{failure:?}");
    }
}

/// The host end is the first interface where there is no bridge.
fn attachment_end<'a>(result: &'a Value, kind: &str) -> &'a str {
    result["interfaces"][usize::from(kind == "bridge")]["name"].as_str().unwrap()
}
