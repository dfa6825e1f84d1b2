//! ADD, DEL and GC: all or nothing, whatever was there before and whatever happened in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, IPV4, IPV6, Node, Plugins, addresses, eth0, host_end, ip};
use kernel::netlink::{LinkKind, Netlink};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

fn layer2(node: &Node) -> Value {
    let mut config = node.bridge("1.0.0", &[]);
    config.as_object_mut().unwrap().retain(|key, _| !matches!(key.as_str(), "ipam" | "isDefaultGateway"));
    config
}

#[test]
fn a_failed_add_leaves_what_was_there() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    ip(&pod, "link add eth0 type veth peer name other");
    let failure = node.add(eth0("c1", &pod), &node.bridge("1.0.0", &[IPV4, IPV6])).unwrap_err();
    assert!(failure.msg.contains("eth0 exists already"), "{failure:?}");
    ip(&pod, "link show eth0");
    node.assert_clean("eth0 was taken");
}

/// Each is a way to fail after the reservation: at the bridge, at a route, at the interface.
#[test]
fn every_failure_is_undone() {
    let damage: [(&str, &str, &str); 5] = [
        ("link add br7 type veth peer name other", "", "br7 exists but is no bridge"),
        ("", r#"[{"dst": "10.77.0.0/16", "gw": "172.16.0.1"}]"#, "10.77.0.0/16 via 172.16.0.1"),
        ("", r#"[{"dst": "fd77::/16", "gw": "fd78::1"}]"#, "fd77::/16 via fd78::1"),
        ("", r#"[{"dst": "fd77::/16", "gw": "10.9.0.1"}]"#, "fd77::/16 via 10.9.0.1"),
        ("", r#"[{"dst": "10.77.0.0/16", "mtu": 4294967295, "table": 0, "scope": 255}]"#, "10.77.0.0/16"),
    ];
    for (on_node, routes, expected) in damage {
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let mut config = node.bridge("1.1.0", &[IPV4, IPV6]);
        if !on_node.is_empty() {
            ip(&node.host, on_node);
        }
        if !routes.is_empty() {
            config["ipam"]["routes"] = serde_json::from_str(routes).unwrap();
        }
        let failure = node.add(eth0("c1", &pod), &config).expect_err(expected);
        assert!(failure.msg.contains(expected), "{failure:?}");
        node.assert_clean(expected);
        let left = Netlink::open_in(&pod).unwrap().links().unwrap();
        assert!(left.iter().all(|link| link.kind != LinkKind::Veth), "{left:?}");
    }
}

/// A second ADD is the runtime's fault; the pod must not suffer.
#[test]
fn an_add_for_an_attachment_that_exists_does_no_harm() {
    for lost_record in [false, true] {
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let config = node.bridge("1.0.0", &[IPV4]);
        let result = node.add(eth0("c1", &pod), &config).unwrap();
        if lost_record {
            std::fs::remove_file(node.networks().join("net/10.9.0.2")).unwrap();
        }
        node.add(eth0("c1", &pod), &config).unwrap_err();
        assert!(node.link(host_end(&result)).is_some_and(|link| link.up), "the pod lost its link");
        assert_eq!(node.neighbours().len(), 1, "{:?}", node.neighbours());
        if !lost_record {
            node.check(eth0("c1", &pod), &config, &result).unwrap();
        }
    }
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let result = node.add(eth0("c1", &pod), &layer2(&node)).unwrap();
    node.add(eth0("c1", &pod), &layer2(&node)).unwrap_err();
    node.check(eth0("c1", &pod), &layer2(&node), &result).unwrap();
}

/// One interface name in one sandbox: the second network fails, and neither its failure nor its DEL hurts the first.
#[test]
fn another_network_cannot_take_an_interface_away() {
    let (node, pod, other_pod) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    let mut other = node.bridge("1.0.0", &["10.8.0.0/24"]);
    other["name"] = "other".into();
    other["bridge"] = "br8".into();
    for sandbox in [&pod, &other_pod] {
        node.add(eth0("c1", sandbox), &other).unwrap_err();
        node.del(eth0("c1", sandbox), &other).unwrap();
        node.check(eth0("c1", &pod), &config, &result).unwrap();
    }
    assert_eq!(node.reservations(), BTreeSet::from(["10.9.0.2".parse().unwrap()]));
    // Under another name both live side by side.
    let second = Attachment { ifname: "net1", ..eth0("c1", &pod) };
    other["isDefaultGateway"] = false.into();
    let other_result = node.add(second, &other).unwrap();
    node.gc(&other, &[("c1", "net1")]).unwrap();
    node.check(eth0("c1", &pod), &config, &result).unwrap();
    node.check(second, &other, &other_result).unwrap();
    node.gc(&config, &[]).unwrap();
    node.check(second, &other, &other_result).unwrap();
    node.del(second, &other).unwrap();
    node.assert_clean("both gone");
}

#[test]
fn leftovers_of_a_crash_are_no_obstacle() {
    let (node, dead, pod) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    // A link without a record: the sandbox of an earlier life, whose records were wiped.
    node.add(eth0("c1", &dead), &config).unwrap();
    std::fs::remove_dir_all(node.networks()).unwrap();
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    node.check(eth0("c1", &pod), &config, &result).unwrap();
    assert_eq!(node.veths().len(), 1);
    // A record without a link, after which the runtime calls DEL.
    ip(&node.host, &format!("link del {}", host_end(&result)));
    node.del(eth0("c1", &pod), &config).unwrap();
    node.assert_clean("record without link");
}

#[test]
fn a_link_of_somebody_else_under_our_name_is_left_alone() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let name = host_end(&node.add(eth0("c1", &pod), &config).unwrap()).to_owned();
    node.del(eth0("c1", &pod), &config).unwrap();
    ip(&node.host, &format!("link add {name} type veth peer name other"));
    let before = node.link(&name);
    let failure = node.add(eth0("c1", &pod), &config).unwrap_err();
    assert!(failure.msg.contains(&name), "{failure:?}");
    assert_eq!(node.link(&name), before);
    assert_eq!(node.reservations(), BTreeSet::new());
}

#[test]
fn adds_that_race_for_the_bridge_all_succeed() {
    let node = Node::new();
    let config = node.bridge("1.0.0", &[IPV4, IPV6]);
    let pods: Vec<Netns> = (0..12).map(|_| Netns::create().unwrap()).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let add = |(number, pod)| {
            let (node, config) = (&node, &config);
            scope.spawn(move || node.add(eth0(&format!("c{number}"), pod), config).unwrap())
        };
        let running: Vec<_> = pods.iter().enumerate().map(add).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut seen = BTreeSet::new();
    for (number, (pod, result)) in pods.iter().zip(&results).enumerate() {
        assert!(addresses(result).into_iter().all(|ip| seen.insert(ip)), "{result}");
        assert_eq!(result["interfaces"][0], results[0]["interfaces"][0], "one bridge, one address");
        node.check(eth0(&format!("c{number}"), pod), &config, result).unwrap();
    }
}

/// Somebody deletes the bridge all the time: ADD succeeds, or fails and leaves nothing.
#[test]
fn a_bridge_that_vanishes_takes_nothing_along() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4, IPV6]);
    let mut host = Netlink::open_in(&node.host).unwrap();
    // So many times, however long it takes on a busy machine.
    let (goal, deadline) = (20, Instant::now() + Duration::from_secs(60));
    let vandal = std::thread::spawn(move || {
        let mut deleted = 0;
        while deleted < goal && Instant::now() < deadline {
            deleted += usize::from(host.delete_link("br7").unwrap());
        }
        deleted
    });
    while !vandal.is_finished() {
        match node.add(eth0("c1", &pod), &config) {
            Ok(_) => drop(node.del(eth0("c1", &pod), &config).unwrap()),
            Err(failure) => assert!(failure.msg.contains("br7"), "{failure:?}"),
        }
        node.assert_clean("the bridge vanished");
    }
    assert_eq!(vandal.join().unwrap(), goal, "hardly any bridge was deleted");
}

/// The runtime repeats DEL as it likes, also after the address went to another pod.
#[test]
fn a_late_del_does_not_touch_the_next_holder_of_the_address() {
    let (node, first, second) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[]);
    config["ipam"]["ranges"] = json!([[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.5"}]]);
    let result = node.add(eth0("c1", &first), &config).unwrap();
    node.del(eth0("c1", &first), &config).unwrap();
    let next = node.add(eth0("c2", &second), &config).unwrap();
    assert_eq!(addresses(&result), addresses(&next));
    let mut late = config.clone();
    late["prevResult"] = result;
    node.del(eth0("c1", &first), &late).unwrap();
    node.check(eth0("c2", &second), &config, &next).unwrap();
}

#[test]
fn del_is_content_with_less_and_less() {
    type Loss = fn(&Node, &Netns, &Value);
    let losses: [(&str, Loss); 7] = [
        ("nothing", |_, _, _| {}),
        ("the interface", |_, pod, _| drop(ip(pod, "link del eth0"))),
        ("the bridge", |node, _, _| drop(ip(&node.host, "link del cbr0"))),
        ("the host end's bridge", |node, _, result| {
            drop(ip(&node.host, &format!("link set {} nomaster", host_end(result))))
        }),
        ("the record", |node, _, _| std::fs::remove_dir_all(node.networks()).unwrap()),
        ("the subnet file", |node, _, _| std::fs::remove_file(node.subnet_file()).unwrap()),
        ("the subnet", |node, _, _| node.write_subnet_file("10.66.0.1/24", None)),
    ];
    for with_result in [false, true] {
        for (what, lose) in &losses {
            let (node, pod) = (Node::new(), Netns::create().unwrap());
            let mut config = node.native("1.0.0");
            let result = node.add(eth0("c1", &pod), &config).unwrap();
            lose(&node, &pod, &result);
            if with_result {
                config["prevResult"] = result;
            }
            for _ in 0..2 {
                node.del(eth0("c1", &pod), &config).unwrap_or_else(|failure| panic!("without {what}: {failure:?}"));
            }
            // Without a record and without a result nobody tells the address: that is left to GC.
            if *what == "the record" && !with_result {
                node.gc(&config, &[]).unwrap();
            }
            node.assert_clean(what);
            assert!(!ip(&pod, "link").contains("eth0"), "without {what}");
        }
    }
}

#[test]
fn del_needs_no_namespace() {
    for path in ["", "/no/such/namespace", "/etc/passwd"] {
        let (node, pod) = (Node::new(), Netns::create().unwrap());
        let config = node.bridge("1.0.0", &[IPV4, IPV6]);
        node.add(eth0("c1", &pod), &config).unwrap();
        node.call_in(Plugins::Ours, "DEL", eth0("c1", &pod), Path::new(path), &config).unwrap();
        node.assert_clean(path);
    }
}

/// A bridge that carries the node's own address, named by mistake or on purpose.
#[test]
fn a_bridge_of_somebody_else_keeps_its_address() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    ip(&node.host, "link add cbr0 type bridge");
    ip(&node.host, "addr add 192.0.2.1/24 dev cbr0");
    node.add(eth0("c1", &pod), &node.native("1.0.0")).unwrap();
    assert!(ip(&node.host, "addr show cbr0").contains("192.0.2.1/24"));
}

/// The daemon got another subnet and no pod is left: the next one needs no help.
#[test]
fn our_own_idle_bridge_moves_to_the_new_subnet() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.native("1.0.0");
    node.add(eth0("c1", &pod), &config).unwrap();
    node.del(eth0("c1", &pod), &config).unwrap();
    node.write_subnet_file("10.9.7.1/24", None);
    let result = node.add(eth0("c2", &pod), &config).unwrap();
    let shown = ip(&node.host, "-4 addr show cbr0");
    assert!(shown.contains("10.9.7.1/24") && !shown.contains("10.9.0.1/24"), "{shown}");
    node.check(eth0("c2", &pod), &config, &result).unwrap();
}

#[test]
fn a_node_that_is_not_ready_says_so() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let config = node.native("1.1.0");
    node.status(&config).unwrap();
    for content in [None, Some("FLANNEL_SUBNET=fish\n"), Some("")] {
        match content {
            Some(content) => std::fs::write(node.subnet_file(), content).unwrap(),
            None => std::fs::remove_file(node.subnet_file()).unwrap(),
        }
        let path = node.subnet_file().display().to_string();
        let status = node.status(&config).unwrap_err();
        assert!(status.code == 50 && status.msg.contains(&path), "{status:?}");
        let add = node.add(eth0("c1", &pod), &config).unwrap_err();
        assert!(add.code == 11 && add.msg.contains(&path), "{add:?}");
    }
    node.write_subnet_file("10.9.0.1/30", None);
    node.add(eth0("c1", &pod), &config).unwrap();
    let full = node.status(&config).unwrap_err();
    assert!(full.code == 50 && full.msg.contains("no IP addresses available"), "{full:?}");
}

/// Each with the reason, by every plugin that would fail.
#[test]
fn status_tells_what_would_make_add_fail() {
    let node = Node::new();
    let config = node.bridge("1.1.0", &[IPV4]);
    node.status(&config).unwrap();
    for (kind, words) in [("firewall", "backend"), ("tuning", "sysctl.kernel.hostname"), ("bandwidth", "egressRate")] {
        let wrong = json!({"cniVersion": "1.1.0", "name": "net", "type": kind, "backend": "firewalld",
                           "sysctl": {"kernel.hostname": "x"}, "egressRate": 1});
        let failure = node.status(&wrong).unwrap_err();
        assert!(failure.code == 50 && failure.msg.contains(words), "{kind}: {failure:?}");
        node.status(&json!({"cniVersion": "1.1.0", "name": "net", "type": kind})).unwrap();
    }
    ip(&node.host, "link add br7 type veth peer name other");
    let failure = node.status(&config).unwrap_err();
    assert!(failure.code == 50 && failure.msg.contains("br7 exists but is no bridge"), "{failure:?}");
    // Who makes no gateway needs no forwarding; who does, says that all pods suffer.
    let read_only = |config: &Value| {
        let script = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec $PLUGIN";
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-c", script]);
        harness::with_environment(&mut command, "STATUS", eth0("none", &node.host), &node.host.path());
        node.answer(command.env("PLUGIN", env!("CARGO_BIN_EXE_cni-plugin")), config)
    };
    ip(&node.host, "link del br7");
    node.host.run(|| kernel::sysctl::set("net.ipv4.ip_forward", "0").unwrap()).unwrap();
    let failure = read_only(&config).unwrap_err();
    assert!(failure.code == 51 && failure.msg.contains("ip_forward") && failure.msg.contains("EROFS"), "{failure:?}");
    let mut switch = layer2(&node);
    switch["cniVersion"] = "1.1.0".into();
    read_only(&switch).unwrap();
    node.host.run(|| kernel::sysctl::set("net.ipv4.ip_forward", "1").unwrap()).unwrap();
    read_only(&config).unwrap();
}

/// The daemon removes routes of its own mark that no lease asks for: the node's routes to its `ptp` pods are none of them.
#[test]
fn the_daemon_has_nothing_to_do_with_the_routes_to_our_own_pods() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[IPV4, IPV6]);
    config["type"] = "ptp".into();
    node.add(eth0("c1", &pod), &config).unwrap();
    assert!(ip(&node.host, "route show").contains("10.9.0.2 dev veth"), "{}", ip(&node.host, "route show"));
    let scope = kernel::Scope {
        devices: ["flannel.1".into()].into(),
        networks: vec!["10.9.0.0/16".parse().unwrap()],
        own: Vec::new(),
    };
    let seen = kernel::observe(&mut Netlink::open_in(&node.host).unwrap(), &scope).unwrap();
    assert_eq!(seen, kernel::Overlay::default());
    node.del(eth0("c1", &pod), &config).unwrap();
    node.assert_clean("deleted");
}
