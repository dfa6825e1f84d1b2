//! The same conflist on both sides.

use crate::bench::{Bench, NODE, OUTSIDE, Pod, Whose, plain, routes};
use e2e::oracle;
use e2e::runner::Network;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Everything that a user of a network sees of two pods on it.
#[derive(Debug, PartialEq)]
struct Sight {
    results: Vec<Value>,
    routes: Vec<String>,
    addresses: Vec<String>,
    reach: BTreeMap<String, String>,
}

fn look(bench: &Bench, one: &Pod, two: &Pod) -> Sight {
    let addresses = |pod: &Pod| {
        let list = oracle::ip_list(pod.sandbox.network(), "address show dev eth0").unwrap();
        let link = list.iter().find(|link| link["ifname"] == "eth0").unwrap();
        let global = link["addr_info"].as_array().unwrap().iter().filter(|info| info["scope"] == "global");
        let shown: Vec<String> = global.map(|info| format!("{}/{}", info["local"], info["prefixlen"])).collect();
        format!("{shown:?} mtu {}", link["mtu"])
    };
    let mut reach = BTreeMap::new();
    for (from, name) in [(one.sandbox.network(), "one"), (two.sandbox.network(), "two"), (bench.node(), "node")] {
        for (to, target) in [(one.address, "one"), (two.address, "two")] {
            if name != target {
                reach.insert(format!("{name} to {target}"), bench.seen(from, to));
            }
        }
    }
    let outside: IpAddr = OUTSIDE.parse().unwrap();
    reach.insert("one to outside".into(), bench.seen(one.sandbox.network(), outside));
    // With a way to the pods, the outside reaches them under their own addresses.
    oracle::ip(bench.outside.network(), &format!("route replace 10.88.0.0/24 via {NODE}")).unwrap();
    reach.insert("outside to two".into(), bench.seen(bench.outside.network(), two.address));
    reach.insert("one to outside, which knows the way".into(), bench.seen(one.sandbox.network(), outside));
    let all_routes =
        |pod: &Pod| format!("{:?} {:?}", routes(pod.sandbox.network(), "-4"), routes(pod.sandbox.network(), "-6"));
    Sight {
        results: [one, two].map(|pod| plain(&pod.result)).into(),
        routes: [one, two].map(all_routes).into(),
        addresses: [one, two].map(addresses).into(),
        reach,
    }
}

/// Runs one conflist on both sides and compares.
fn compare(version: &str, plugins: impl Fn(&Bench) -> Value) -> Sight {
    let [ours, theirs] = [Whose::Ours, Whose::Theirs].map(|whose| {
        let bench = Bench::new(whose);
        let network = bench.network(version, plugins(&bench));
        let (one, two) = (bench.attach(&network, "box1"), bench.attach(&network, "box2"));
        let sight = look(&bench, &one, &two);
        for pod in [&one, &two] {
            bench.runtime.check(&network, &pod.attachment).unwrap();
            bench.runtime.del(&network, &pod.attachment).unwrap();
            bench.runtime.del(&network, &pod.attachment).unwrap();
        }
        if whose == Whose::Ours {
            bench.assert_clean("after DEL");
            // Without the namespaces, and once more by GC.
            let pods = [bench.attach(&network, "box3"), bench.attach(&network, "box4")];
            let attachments = pods.map(|pod| pod.attachment.clone());
            bench.runtime.del(&network, &attachments[0]).unwrap();
            let network = network.version("1.1.0");
            bench.runtime.status(&network).unwrap();
            bench.runtime.gc(&network, &[]).unwrap();
            std::fs::remove_dir_all(bench.directory("results")).unwrap();
            bench.assert_clean("after GC");
        }
        sight
    });
    assert_eq!(ours, theirs);
    ours
}

fn gateway_bridge(bench: &Bench, more: Value) -> Value {
    let mut plugin = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": bench.host_local()});
    for (key, value) in more.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    plugin
}

#[test]
fn bridge_with_masquerade() {
    let sight = compare("1.0.0", |bench| json!([gateway_bridge(bench, json!({"ipMasq": true, "mtu": 1400}))]));
    assert_eq!(sight.reach["one to outside"], NODE);
    assert_eq!(sight.reach["one to two"], "10.88.0.2");
}

#[test]
fn bridge_without_masquerade() {
    let sight = compare("0.4.0", |bench| json!([gateway_bridge(bench, json!({"hairpinMode": true}))]));
    assert_eq!(sight.reach["one to outside"], "silence");
    assert_eq!(sight.reach["one to outside, which knows the way"], "10.88.0.2");
}

#[test]
fn ptp_with_masquerade() {
    let sight =
        compare("1.0.0", |bench| json!([{"type": "ptp", "ipMasq": true, "mtu": 1300, "ipam": bench.host_local()}]));
    assert_eq!(sight.reach["one to outside"], NODE);
    assert_eq!(sight.reach["one to two"], "10.88.0.2");
}

#[test]
fn ptp_of_both_families() {
    compare("0.4.0", |bench| {
        let mut ipam = bench.host_local();
        ipam["ranges"] = json!([[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]);
        ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        json!([{"type": "ptp", "dns": {"nameservers": ["10.88.0.53"], "search": ["a.b"]}, "ipam": ipam}])
    });
}

/// Static addresses are one pod's: the second is told another one by its arguments.
#[test]
fn bridge_with_static_addresses() {
    for (plugin, version) in [("bridge", "1.0.0"), ("ptp", "0.3.1")] {
        let [ours, theirs] = [Whose::Ours, Whose::Theirs].map(|whose| {
            let bench = Bench::new(whose);
            let list = json!([{
                "type": plugin, "bridge": "cni0", "isGateway": true,
                "capabilities": {"ips": true},
                "ipam": {
                    "type": "static",
                    "addresses": [{"address": "10.88.0.7/24", "gateway": "10.88.0.1"}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}, {"dst": "198.51.100.0/24"}],
                    "dns": {"nameservers": ["10.1.0.1"], "domain": "example.com"},
                },
            }]);
            let network = bench.network(version, list);
            let one = bench.attach(&network, "box1");
            assert_eq!(one.address.to_string(), "10.88.0.7");
            let seen = bench.seen(bench.node(), one.address);
            let mut result = plain(&one.result);
            // Their bridge of 1.1.1 loses what the address management says about names; later ones do not.
            if plugin == "bridge" {
                result.as_object_mut().unwrap().remove("dns");
            }
            let sight = (result, routes(one.sandbox.network(), "-4"), seen);
            // Theirs of 1.1.1 does not find a route that its own result tells without the gateway.
            if version > "0.4.0" && whose == Whose::Ours {
                bench.runtime.check(&network, &one.attachment).unwrap();
            }
            bench.runtime.del(&network, &one.attachment).unwrap();
            let mut asked = one.attachment.clone();
            asked.args = "IgnoreUnknown=1;IP=10.88.0.8/24;GATEWAY=10.88.0.1".into();
            // Their ptp fails with two addresses of one subnet, whose routes to the gateway are the same.
            let both = (plugin == "bridge" || whose == Whose::Ours).then(|| {
                let result = bench.runtime.add(&network, &asked).unwrap();
                bench.runtime.del(&network, &asked).unwrap();
                result["ips"].clone()
            });
            if whose == Whose::Ours {
                bench.assert_clean("after DEL");
            }
            (sight, both.filter(|_| plugin == "bridge"))
        });
        assert_eq!(ours, theirs, "{plugin}");
    }
}

#[test]
fn bridge_with_firewall() {
    let policies = [json!({}), json!({"ingressPolicy": "same-bridge"})];
    for policy in policies {
        compare("1.0.0", |bench| {
            let mut firewall = json!({"type": "firewall", "backend": "iptables"});
            firewall.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
            json!([gateway_bridge(bench, json!({"ipMasq": true})), firewall])
        });
    }
}

/// Two isolated bridges: neither side's pods reach the other's, and both reach their own.
#[test]
fn bridges_are_kept_apart() {
    for whose in [Whose::Ours, Whose::Theirs] {
        let bench = Bench::new(whose);
        let network = |name: &str, bridge: &str, subnet: &str| {
            let ipam = json!({"type": "host-local", "dataDir": bench.directory("networks"),
                              "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]});
            let bridge = json!({"type": "bridge", "bridge": bridge, "isGateway": true, "ipam": ipam});
            let firewall = json!({"type": "firewall", "ingressPolicy": "same-bridge"});
            Network::new(json!({"cniVersion": "1.0.0", "name": name, "plugins": [bridge, firewall]})).unwrap()
        };
        let (blue, red) = (network("blue", "blue0", "10.90.0.0/24"), network("red", "red0", "10.91.0.0/24"));
        let (one, two, other) = (bench.attach(&blue, "box1"), bench.attach(&blue, "box2"), bench.attach(&red, "box3"));
        assert_eq!(bench.seen(one.sandbox.network(), two.address), one.address.to_string(), "{whose:?}");
        assert_eq!(bench.seen(one.sandbox.network(), other.address), "silence", "{whose:?}");
        assert_eq!(bench.seen(other.sandbox.network(), one.address), "silence", "{whose:?}");
        assert_eq!(bench.seen(bench.node(), other.address), "10.91.0.1", "{whose:?}");
        if whose == Whose::Ours {
            bench.runtime.check(&blue, &one.attachment).unwrap();
            oracle::nft(bench.node(), "delete element inet cni-firewall pods4 { 10.90.0.2 }").unwrap();
            let error = bench.runtime.check(&blue, &one.attachment).unwrap_err();
            assert!(error.to_string().contains("lacks 10.90.0.2"), "{error}");
        }
    }
}
