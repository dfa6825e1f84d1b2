//! A port has one owner, and a record of it.

use crate::harness::eth0;
use crate::world::{NODE, OUTSIDE, Pod, Stack, World, ask_tcp, mapping};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::process::Command;

fn at(host: &str, port: u16) -> Value {
    json!([{"hostIP": host, "hostPort": port, "containerPort": 80, "protocol": "tcp"}])
}

#[test]
fn a_second_owner_is_refused_by_the_name_of_the_first() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let everywhere = json!([mapping(8080, 80, "tcp")]);
        let first = Pod::start(&world, "first", &everywhere);
        let _special = Pod::start(&world, "special", &at(NODE[0], 8081));
        let intruder = Netns::create().unwrap();
        for (mappings, owner) in [
            (everywhere.clone(), "first"),
            (json!([mapping(9999, 80, "tcp"), mapping(8080, 81, "TCP")]), "first"),
            (at(NODE[0], 8080), "first"),
            (at(NODE[1], 8080), "first"),
            (at(NODE[0], 8081), "special"),
            (at("0.0.0.0", 8081), "special"),
            (json!([mapping(8081, 80, "tcp")]), "special"),
        ] {
            let failure = world.add(eth0("intruder", &intruder), &mappings).unwrap_err();
            assert_eq!(failure.code, 103, "{failure:?}");
            for word in [owner, "eth0", "network net", "host port tcp"] {
                assert!(failure.msg.contains(word), "{mappings}: {failure:?}");
            }
            world.del(eth0("intruder", &intruder), &mappings).unwrap();
        }
        // Neither another protocol, nor another family, nor another address is the same port.
        let elsewhere = json!([
            mapping(8080, 80, "udp"),
            {"hostIP": "::", "hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
            {"hostIP": "192.0.2.2", "hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
        ]);
        world.add(eth0("intruder", &intruder), &elsewhere).unwrap();
        world.del(eth0("intruder", &intruder), &elsewhere).unwrap();
        // The first one has lost nothing by all that, and what it gives up is free.
        assert_eq!(ask_tcp(&world.outside, NODE[0], 8080).unwrap().0, "first");
        world.del(first.attachment(), &everywhere).unwrap();
        world.add(eth0("intruder", &intruder), &everywhere).unwrap();
    }
}

#[test]
fn del_needs_no_mappings_and_twice_is_once() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let mappings = json!([mapping(8080, 80, "tcp"), mapping(8080, 80, "sctp"), mapping(53, 80, "udp")]);
        let web = Pod::start(&world, "web", &mappings);
        assert_eq!(world.elements().len(), 2 * 4);
        world.del(web.attachment(), &json!([])).unwrap();
        world.assert_no_ports("after DEL");
        world.del(web.attachment(), &mappings).unwrap();
    }
}

#[test]
fn gc_takes_what_nobody_lists() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let stays = Pod::start(&world, "stays", &json!([mapping(8080, 80, "tcp")]));
        let _goes = Pod::start(&world, "goes", &json!([mapping(8081, 80, "tcp")]));
        world.gc(&[("stays", "eth0")]).unwrap();
        assert!(ask_tcp(&world.outside, NODE[0], 8080).is_ok());
        assert!(ask_tcp(&world.outside, NODE[0], 8081).is_err());
        assert_eq!(world.elements().len(), 2 * 2);
        world.gc(&[]).unwrap();
        world.assert_no_ports("after GC");
        assert!(!world.nft("list tables").contains("host-ports"));
        drop(stays);
    }
}

#[test]
fn check_names_what_is_missing() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let mappings = json!([mapping(8080, 80, "tcp")]);
        let web = Pod::start(&world, "web", &mappings);
        world.check(web.attachment(), &mappings, &web.result).unwrap();
        let complaint = |mappings: &Value| world.check(web.attachment(), mappings, &web.result).unwrap_err().msg;
        assert!(complaint(&json!([mapping(8081, 80, "tcp")])).contains("tcp 0.0.0.0:8081"));
        world.nft("delete element ip cni-plugin-host-ports ports { tcp . 8080 }");
        assert!(complaint(&mappings).contains("host port tcp 0.0.0.0:8080 -> 10.9.0.2:80 is missing in set ports"));
        world.nft("add element ip cni-plugin-host-ports ports { tcp . 8080 : 10.9.0.9 . 80 }");
        assert!(complaint(&mappings).contains("is missing in set ports"), "it leads elsewhere");
        world.nft("flush chain ip6 cni-plugin-host-ports postrouting");
        assert!(complaint(&mappings).contains("the rules of nft table ip6 cni-plugin-host-ports"));
    }
}

#[test]
fn wrong_mappings_are_refused_by_name() {
    let world = World::new(Stack::Native);
    let pod = Netns::create().unwrap();
    for (mapping, words) in [
        (json!({"hostPort": 0, "containerPort": 80, "protocol": "tcp"}), "portMappings[0].hostPort: must be a port"),
        (json!({"hostPort": 65536, "containerPort": 80, "protocol": "tcp"}), "portMappings[0].hostPort: must be"),
        (json!({"hostPort": 80, "protocol": "tcp"}), "portMappings[0].containerPort: must be a port"),
        (json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}), "protocol: must be tcp, udp or sctp"),
        (json!({"hostPort": 80, "containerPort": 80, "hostIP": "here"}), "hostIP: must be an IPv4 or IPv6 address"),
        (json!("8080:80"), "portMappings[0]"),
    ] {
        let failure = world.add(eth0("web", &pod), &json!([mapping])).unwrap_err();
        assert!(failure.code == 7 && failure.msg.contains(words), "{mapping}: {failure:?}");
    }
    let failure = world.add(eth0("web", &pod), &json!([mapping(80, 1, "tcp"), mapping(80, 2, "tcp")])).unwrap_err();
    assert!(failure.code == 7 && failure.msg.contains("contradict"), "{failure:?}");
    world.node.assert_clean("after refusals");
    for (options, code, words) in [
        (json!({"conditionsV4": ["-s", "10.0.0.0/8"]}), 2, "conditionsV4"),
        (json!({"backend": "ebpf"}), 7, "backend"),
        (json!({"markMasqBit": 32}), 7, "markMasqBit"),
        (json!({"markMasqBit": 3, "externalSetMarkChain": "X"}), 7, "together"),
    ] {
        let mut world = World::new(Stack::Chain);
        world.options = options;
        let failure = world.add(eth0("web", &pod), &json!([])).unwrap_err();
        assert!(failure.code == code && failure.msg.contains(words), "{failure:?}");
        world.del(eth0("web", &pod), &json!([])).unwrap();
    }
    let mut alone = World::new(Stack::Chain).configs(&json!([])).pop().unwrap();
    alone["hostPortsDir"] = json!(world.directory());
    let failure = world.node.add(eth0("web", &pod), &alone).unwrap_err();
    assert!(failure.code == 7 && failure.msg.contains("chained plugin"), "{failure:?}");
}

#[test]
fn status_tells_whether_a_port_could_be_recorded() {
    let world = World::new(Stack::Chain);
    let mut config = world.configs(&json!([])).pop().unwrap();
    config["cniVersion"] = "1.1.0".into();
    world.node.status(&config).unwrap();
    config["hostPortsDir"] = "/proc/nowhere".into();
    let failure = world.node.status(&config).unwrap_err();
    assert!(failure.code == 50 && failure.msg.contains("/proc/nowhere"), "{failure:?}");
}

/// What the reference plugin made stays, and goes by the reference plugin.
#[test]
fn the_reference_plugin_s_rules_are_not_touched() {
    let reference = World::new(Stack::Reference);
    let old = Pod::start(&reference, "old", &json!([mapping(8080, 80, "tcp")]));
    let rules = |world: &World| {
        let _inside = world.node.host.enter().unwrap();
        let output = Command::new("iptables-save").args(["-t", "nat"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.starts_with(['#', ':'])).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules(&reference);
    assert!(before.iter().any(|line| line.contains("CNI-HOSTPORT-DNAT")), "{before:?}");
    let ours = World { stack: Stack::Chain, ..reference };
    let new = Pod::start(&ours, "new", &json!([mapping(8081, 80, "tcp")]));
    assert_eq!(ask_tcp(&ours.outside, NODE[0], 8080).unwrap(), ("old".into(), OUTSIDE[0].parse().unwrap()));
    assert_eq!(ask_tcp(&ours.outside, NODE[0], 8081).unwrap().0, "new");
    ours.del(new.attachment(), &json!([])).unwrap();
    ours.gc(&[("old", "eth0")]).unwrap();
    assert_eq!(rules(&ours), before);
    drop(old);
}
