//! Beside the reference plugins: the same result for the same configuration, and each tears down what the other made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, IPV4, IPV6, Node, Plugins, eth0, host_end, ip};
use kernel::netlink::Netlink;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// What may differ between the results, and why.
fn comparable(mut result: Value) -> Value {
    // A configured route without a gateway goes over that of its family; ours says so, the reference leaves it to be
    // known (spec section 5: "if unset, a value in gateway in the ips array may be used").
    let gateways: Vec<Value> = result["ips"].as_array().into_iter().flatten().map(|ip| ip["gateway"].clone()).collect();
    for route in result["routes"].as_array_mut().into_iter().flatten() {
        if route["gw"].is_null() || gateways.contains(&route["gw"]) {
            route["gw"] = "the gateway of its family".into();
        }
    }
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        // MACs and the host end's name are random there, and follow from the attachment here.
        interface["mac"] = (!interface["mac"].as_str().unwrap_or_default().is_empty()).into();
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = "veth".into();
        }
    }
    result
}

/// What the kernel has: addresses and routes of the pod, addresses of the bridge, MTUs.
fn observed(node: &Node, pod: &Netns, bridge: &str) -> Vec<String> {
    let mut pod = Netlink::open_in(pod).unwrap();
    let mut seen = Vec::new();
    let link = pod.link("eth0").unwrap().unwrap();
    seen.push(format!("mtu {} up {}", link.mtu, link.up));
    let link_local = |ip: &ipnetwork::IpNetwork| ip.to_string().starts_with("fe80");
    let addresses = pod.addresses_of(link.index).unwrap();
    seen.extend(addresses.iter().filter(|ip| !link_local(ip)).map(|ip| format!("pod {ip}")));
    let routes = pod
        .routes()
        .unwrap()
        .into_iter()
        .filter(|route| route.table == 254 && route.dev == Some(link.index) && !link_local(&route.dst));
    seen.extend(routes.map(|route| format!("route {} via {:?} scope {}", route.dst, route.via, route.scope)));
    let bridge = node.link(bridge).unwrap();
    let addresses = Netlink::open_in(&node.host).unwrap().addresses_of(bridge.index).unwrap();
    seen.extend(addresses.iter().filter(|ip| !link_local(ip)).map(|ip| format!("bridge {ip}")));
    seen.sort();
    seen
}

fn networks(node: &Node) -> Vec<(&'static str, Value)> {
    let with = |subnets: &[&str], changes: Value| {
        let mut config = node.bridge("1.0.0", subnets);
        for (key, value) in changes.as_object().unwrap() {
            match key.as_str() {
                "routes" | "resolvConf" => config["ipam"][key] = value.clone(),
                _ if value.is_null() => drop(config.as_object_mut().unwrap().remove(key)),
                _ => config[key] = value.clone(),
            }
        }
        config
    };
    let resolv_conf = node.dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 10.0.0.53\nsearch a.example b.example\noptions ndots:5\n").unwrap();
    vec![
        ("default gateway", with(&[IPV4], json!({}))),
        ("default gateway, IPv6", with(&[IPV6], json!({}))),
        ("default gateway, dual-stack", with(&[IPV4, IPV6], json!({}))),
        ("gateway", with(&[IPV4, IPV6], json!({"isDefaultGateway": false, "isGateway": true}))),
        ("switch", with(&[IPV4, IPV6], json!({"isDefaultGateway": false}))),
        ("no mtu", with(&[IPV4], json!({"mtu": null}))),
        ("dns", with(&[IPV4], json!({"dns": {"nameservers": ["10.0.0.53"], "search": ["a.example"]}}))),
        ("dns of the network first", with(&[IPV4], json!({"dns": {"domain": "a.example"}, "resolvConf": resolv_conf}))),
        (
            "routes",
            with(
                &[IPV4, IPV6],
                json!({
                    "isDefaultGateway": false, "isGateway": true,
                    "routes": [{"dst": "10.20.0.0/16"}, {"dst": "10.30.0.0/16", "gw": "10.9.0.77"}, {"dst": "fd20::/16"},
                               {"dst": "0.0.0.0/0"}],
                }),
            ),
        ),
        ("routes and default gateway", with(&[IPV4], json!({"routes": [{"dst": "10.20.0.0/16"}]}))),
        ("a route that the kernel has", with(&[IPV4], json!({"routes": [{"dst": "10.9.0.0/24"}]}))),
        ("layer 2", with(&[], json!({"ipam": {}, "isDefaultGateway": false}))),
        ("0.4.0", with(&[IPV4, IPV6], json!({"cniVersion": "0.4.0"}))),
        ("0.3.1", with(&[IPV4, IPV6], json!({"cniVersion": "0.3.1"}))),
        ("0.2.0", with(&[IPV4], json!({"cniVersion": "0.2.0"}))),
    ]
}

#[test]
fn both_do_the_same() {
    let count = networks(&Node::new()).len();
    for number in 0..count {
        let [theirs, ours] = [Plugins::Reference, Plugins::Ours].map(|plugins| {
            let (node, pod) = (Node::new(), Netns::create().unwrap());
            let (name, config) = networks(&node).remove(number);
            let result = node.call(plugins, "ADD", eth0("c1", &pod), &config);
            let result = result.unwrap_or_else(|failure| panic!("{name}: {plugins:?}: {failure:?}"));
            let mut text = comparable(result).to_string();
            // Each has its own sandbox.
            text = text.replace(&pod.path().display().to_string(), "SANDBOX");
            (name, text, observed(&node, &pod, "br7"))
        });
        assert_eq!(theirs, ours);
    }
}

/// The one difference that is meant: version 1.1.1 of the reference drops what its own address management read from
/// `resolvConf`; later versions print it, as we do.
#[test]
fn name_resolution_of_the_address_management_is_handed_on() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let (_, mut config) = networks(&node).into_iter().find(|(name, _)| *name == "dns of the network first").unwrap();
    config.as_object_mut().unwrap().remove("dns");
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    let expected = json!({"nameservers": ["10.0.0.53"], "search": ["a.example", "b.example"], "options": ["ndots:5"]});
    assert_eq!(result["dns"], expected);
}

#[test]
fn both_refuse_a_bridge_with_another_address_unless_forced() {
    for plugins in [Plugins::Reference, Plugins::Ours] {
        for forced in [false, true] {
            let (node, pod) = (Node::new(), Netns::create().unwrap());
            ip(&node.host, "link add br7 type bridge");
            ip(&node.host, "addr add 10.9.0.250/24 dev br7");
            let mut config = node.bridge("1.0.0", &[IPV4]);
            config["forceAddress"] = forced.into();
            let result = node.call(plugins, "ADD", eth0("c1", &pod), &config);
            let shown = ip(&node.host, "-4 addr show br7");
            if forced {
                result.unwrap();
                assert!(shown.contains("10.9.0.1/24") && !shown.contains("10.9.0.250"), "{plugins:?}: {shown}");
            } else {
                let failure = result.unwrap_err();
                assert!(failure.msg.contains("already has an IP address different from"), "{failure:?}");
                assert!(!shown.contains("10.9.0.1/24"), "{plugins:?}: {shown}");
                assert_eq!(node.reservations().len(), 0, "{plugins:?}");
            }
        }
    }
}

#[test]
fn each_tears_down_what_the_other_made() {
    for (adds, deletes) in [(Plugins::Reference, Plugins::Ours), (Plugins::Ours, Plugins::Reference)] {
        let (node, pod, second) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
        let config = node.bridge("1.0.0", &[IPV4, IPV6]);
        let result = node.call(adds, "ADD", eth0("c1", &pod), &config).unwrap();
        node.call(adds, "ADD", eth0("c2", &second), &config).unwrap();
        let mut last = config.clone();
        last["prevResult"] = result.clone();
        node.call(deletes, "DEL", eth0("c1", &pod), &last).unwrap();
        assert!(node.link(host_end(&result)).is_none(), "{deletes:?} left the link");
        assert!(node.reservations().iter().all(|ip| !ip.to_string().ends_with('2')), "{:?}", node.reservations());
        assert_eq!(node.veths().len(), 1, "the other pod keeps its link");
        // The reference knows nothing of our neighbour entries: they must not be there for ever.
        assert_eq!(
            ip(&node.host, "neigh show nud permanent dev br7").lines().filter(|line| !line.starts_with("ff")).count(),
            0
        );
        node.call(deletes, "DEL", eth0("c2", &second), &config).unwrap();
        ip(&node.host, "neigh flush dev br7");
        // Nor of our records, which are left to GC.
        node.gc(&config, &[]).unwrap();
        node.assert_clean("both deleted");
    }
}

/// A node that changes over with its pods running: new pods of ours beside old ones, which then leave one by one.
#[test]
fn pods_of_both_live_side_by_side() {
    let (node, old, new) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let old_result = node.call(Plugins::Reference, "ADD", eth0("old", &old), &config).unwrap();
    let bridge = node.link("br7").unwrap();
    let new_result = node.add(eth0("new", &new), &config).unwrap();
    assert_eq!(node.link("br7").unwrap().mac, bridge.mac, "the bridge keeps its address");
    node.check(eth0("old", &old), &config, &old_result).unwrap();
    node.check(eth0("new", &new), &config, &new_result).unwrap();
    // A second interface of an old pod.
    let second = Attachment { ifname: "net1", ..eth0("old", &old) };
    let second_result = node.add(second, &config).unwrap();
    node.check(second, &config, &second_result).unwrap();
    node.gc(&config, &[("old", "eth0"), ("old", "net1"), ("new", "eth0")]).unwrap();
    for (attachment, result) in
        [(eth0("old", &old), &old_result), (second, &second_result), (eth0("new", &new), &new_result)]
    {
        node.check(attachment, &config, result).unwrap();
    }
    for attachment in [eth0("old", &old), second, eth0("new", &new)] {
        node.del(attachment, &config).unwrap();
    }
    node.assert_clean("all deleted");
}

/// The way back: the reference deletes a pod of ours and gives its address to one of its own, with another MAC. The host must
/// find that pod, although an entry that we made still names the old one.
#[test]
fn an_address_that_the_reference_gives_again_is_found() {
    let (node, first, second) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[IPV4]);
    config["args"] = json!({"cni": {"ips": ["10.9.0.77"]}});
    node.call(Plugins::Ours, "ADD", eth0("c1", &first), &config).unwrap();
    node.call(Plugins::Reference, "DEL", eth0("c1", &first), &config).unwrap();
    node.call(Plugins::Reference, "ADD", eth0("c2", &second), &config).unwrap();
    let server = second.run(|| UdpSocket::bind("10.9.0.77:7").unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let client = node.host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let arrives = || {
        client.send_to(b"?", "10.9.0.77:7").unwrap();
        server.recv_from(&mut [0; 1]).is_ok()
    };
    while !arrives() {
        assert!(Instant::now() < deadline, "{}", ip(&node.host, "neigh show"));
    }
    node.call(Plugins::Reference, "DEL", eth0("c2", &second), &config).unwrap();
}

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
