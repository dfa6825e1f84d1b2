//! What a pod has in nftables: masquerade, firewall, the guard of its hardware address; recorded, restored, and gone with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use cni_plugin::attachments::{Attachments, Held};
use cni_plugin::restore::Restorer;
use harness::{Attachment, Failure, IPV4, IPV6, Node, Plugins, eth0, ip};
use kernel::netns::Netns;
use kernel::nft::Nft;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

fn nft(node: &Node, arguments: &str) -> String {
    let inside = node.host.enter().unwrap();
    let output = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
    drop(inside);
    assert!(output.status.success(), "nft {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of the ruleset, in an order that does not depend on history.
fn ruleset(node: &Node) -> Vec<String> {
    let text = nft(node, "list ruleset").replace("elements = {", "").replace(['{', '}'], ",");
    let mut parts: Vec<String> = text.split([',', '\n']).map(|part| part.trim().to_owned()).collect();
    parts.retain(|part| !part.is_empty());
    parts.sort();
    parts
}

/// Bridge and firewall, with everything of theirs that nftables does.
fn chain(node: &Node) -> [Value; 2] {
    let mut bridge = node.bridge("1.0.0", &[IPV4, IPV6]);
    bridge["ipMasq"] = true.into();
    bridge["macspoofchk"] = true.into();
    let firewall = json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall", "ingressPolicy": "same-bridge",
                          "attachmentsDir": node.attachments()});
    [bridge, firewall]
}

fn add(node: &Node, attachment: Attachment<'_>) -> Result<Value, Failure> {
    let [bridge, mut firewall] = chain(node);
    firewall["prevResult"] = node.add(attachment, &bridge)?;
    node.add(attachment, &firewall)
}

fn check(node: &Node, attachment: Attachment<'_>, result: &Value) -> Result<(), Failure> {
    chain(node).iter().try_for_each(|config| node.check(attachment, config, result).map(drop))
}

fn del(node: &Node, attachment: Attachment<'_>) {
    chain(node).iter().rev().for_each(|config| drop(node.del(attachment, config).unwrap()));
}

fn gc(node: &Node, valid: &[(&str, &str)]) {
    chain(node).iter().for_each(|config| drop(node.gc(config, valid).unwrap()));
}

#[test]
fn the_next_add_brings_back_what_all_pods_had() {
    let (node, pods) = (Node::new(), [(); 3].map(|()| Netns::create().unwrap()));
    let old = add(&node, eth0("old", &pods[0])).unwrap();
    let plain = node.add(eth0("plain", &pods[1]), &node.bridge("1.0.0", &[IPV4])).unwrap();
    let intact = ruleset(&node);
    assert!(intact.iter().any(|line| line.contains("net/old/eth0")) && !intact.iter().any(|l| l.contains("plain")));
    for flush in ["flush ruleset", "delete table inet cni-firewall", "delete table bridge cni-macspoof"] {
        nft(&node, flush);
        let failure = check(&node, eth0("old", &pods[0]), &old).unwrap_err();
        assert!(failure.code == 102 && failure.msg.contains("is missing"), "{failure:?}");
        let new = add(&node, eth0("new", &pods[2])).unwrap();
        check(&node, eth0("old", &pods[0]), &old).unwrap_or_else(|failure| panic!("after {flush}: {failure:?}"));
        check(&node, eth0("new", &pods[2]), &new).unwrap();
        del(&node, eth0("new", &pods[2]));
        assert_eq!(ruleset(&node), intact, "after {flush}");
    }
    node.check(eth0("plain", &pods[1]), &node.bridge("1.0.0", &[IPV4]), &plain).unwrap();
    gc(&node, &[("plain", "eth0")]);
    assert!(!ruleset(&node).iter().any(|line| line.contains("net/old/eth0")), "{:?}", ruleset(&node));
    gc(&node, &[]);
    node.assert_clean("after GC");
}

#[test]
fn the_daemon_brings_back_what_is_recorded() {
    let (node, pods) = (Node::new(), [(); 2].map(|()| Netns::create().unwrap()));
    let _inside = node.host.enter().unwrap();
    let mut connection = Nft::open().unwrap();
    let restorer = || Restorer::new(Held::by(Attachments::recorded_in(node.attachments())));
    let mut watching = restorer();
    assert!(!watching.restore(&mut connection).unwrap() && !node.attachments().exists());
    add(&node, eth0("one", &pods[0])).unwrap();
    add(&node, eth0("two", &pods[1])).unwrap();
    assert!(!watching.restore(&mut connection).unwrap(), "nothing is missing");
    let intact = ruleset(&node);
    for (damage, at_once) in [
        ("flush ruleset", true),
        ("flush chain inet cni-masquerade-net postrouting", true),
        ("delete table inet cni-firewall", true),
        ("flush set bridge cni-macspoof guarded", false),
        ("flush set inet cni-firewall same-bridge", false),
        ("flush set inet cni-masquerade-net own4", false),
    ] {
        nft(&node, damage);
        // What no flush of whole tables takes is found after a rest, which no test waits for.
        let repaired = if at_once { watching.restore(&mut connection) } else { restorer().restore(&mut connection) };
        assert!(repaired.is_ok(), "{damage}: {repaired:?}");
        assert_eq!(ruleset(&node), intact, "{damage}");
    }
    // Pods whose records somebody lost keep what they have when a table is made anew.
    std::fs::remove_dir_all(node.attachments()).unwrap();
    let third = Netns::create().unwrap();
    add(&node, eth0("three", &third)).unwrap();
    nft(&node, "flush chain inet cni-masquerade-net postrouting");
    assert!(restorer().restore(&mut connection).unwrap());
    assert!(ruleset(&node).iter().any(|line| line.ends_with("\"net/one/eth0\"")), "{:?}", ruleset(&node));
    for (name, pod) in ["one", "two", "three"].into_iter().zip(pods.iter().chain([&third])) {
        del(&node, eth0(name, pod));
    }
    assert!(!ruleset(&node).iter().any(|line| line.contains("/eth0")), "{:?}", ruleset(&node));
    node.assert_clean("all deleted");
}

/// Somebody flushes and a daemon restores all the time, while pods come and go.
#[test]
fn nobody_who_left_comes_back() {
    let node = Node::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _inside = node.host.enter().unwrap();
            let mut connection = Nft::open().unwrap();
            while !over.load(Ordering::Relaxed) {
                nft(&node, "flush ruleset");
                let mut restorer = Restorer::new(Held::by(Attachments::recorded_in(node.attachments())));
                restorer.restore(&mut connection).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let coming_and_going = |name: String| {
            let (node, pod) = (&node, Netns::create().unwrap());
            move || {
                for _round in 0..6 {
                    add(node, eth0(&name, &pod)).unwrap();
                    del(node, eth0(&name, &pod));
                }
            }
        };
        let pods = ["a", "b"].map(|name| scope.spawn(coming_and_going(name.into())));
        let ended = pods.map(|pod| pod.join());
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(Result::unwrap);
    });
    assert!(!ruleset(&node).iter().any(|line| line.contains("/eth0")), "{:?}", ruleset(&node));
    node.assert_clean("all deleted");
}

/// Whether the pod gets through to its node.
fn reaches_the_node(pod: &Netns) -> bool {
    let inside = pod.enter().unwrap();
    let to: SocketAddr = "10.9.0.1:4789".parse().unwrap();
    let connected = TcpStream::connect_timeout(&to, PATIENCE).is_ok();
    drop(inside);
    connected
}

#[test]
fn a_pod_speaks_under_its_own_hardware_address_only() {
    for guarded in [false, true] {
        let (node, honest, spoofing) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
        let mut config = node.bridge("1.0.0", &[IPV4]);
        config["macspoofchk"] = guarded.into();
        let result = node.add(eth0("spoofing", &spoofing), &config).unwrap();
        node.add(eth0("honest", &honest), &config).unwrap();
        let listener = node.host.run(|| TcpListener::bind("10.9.0.1:4789").unwrap()).unwrap();
        assert!(reaches_the_node(&spoofing) && reaches_the_node(&honest));
        ip(&spoofing, "link set eth0 address 02:00:00:00:00:99");
        assert_eq!(reaches_the_node(&spoofing), !guarded, "guarded: {guarded}");
        assert!(reaches_the_node(&honest));
        let mac = result["interfaces"][2]["mac"].as_str().unwrap();
        ip(&spoofing, &format!("link set eth0 address {mac}"));
        assert!(reaches_the_node(&spoofing), "under its own address again");
        drop(listener);
        node.del(eth0("spoofing", &spoofing), &config).unwrap();
        node.del(eth0("honest", &honest), &config).unwrap();
        assert!(!nft(&node, "list ruleset").contains("/eth0"));
        node.assert_clean("both deleted");
    }
}

/// Where nothing can be recorded, pods that have nothing to restore do without; the others say why.
#[test]
fn a_record_that_cannot_be_written_is_told() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[IPV4]);
    config["attachmentsDir"] = "/proc/nowhere".into();
    node.add(eth0("c1", &pod), &config).unwrap();
    node.del(eth0("c1", &pod), &config).unwrap();
    config["ipMasq"] = true.into();
    let failure = node.call(Plugins::Ours, "ADD", eth0("c1", &pod), &config).unwrap_err();
    assert!(failure.code == 5 && failure.msg.contains("/proc/nowhere"), "{failure:?}");
    node.assert_clean("refused");
}

/// In one call: the cluster's networks keep the pod's address, the rest of the world sees the node's.
#[test]
fn native_masquerade_and_sysctls_need_no_other_plugin() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    let mut config = node.native("1.1.0");
    config["ipMasq"] = true.into();
    config["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "777"});
    let result = node.add(eth0("c1", &pod), &config).unwrap();
    let sysctl = |key: &str| pod.run(|| kernel::sysctl::get(key).unwrap()).unwrap();
    assert_eq!((sysctl("net.ipv4.conf.eth0.arp_filter"), sysctl("net.core.somaxconn")), ("1".into(), "777".into()));
    let own =
        nft(&node, "list set inet cni-masquerade-net own4") + &nft(&node, "list set inet cni-masquerade-net own6");
    assert!(own.contains("10.0.0.0/8") && own.contains("fd00::/8") && !own.contains("10.9.0.0"), "{own}");
    node.check(eth0("c1", &pod), &config, &result).unwrap();
    pod.run(|| kernel::sysctl::set("net.core.somaxconn", "128").unwrap()).unwrap();
    nft(&node, "delete table inet cni-masquerade-net");
    let failure = node.check(eth0("c1", &pod), &config, &result).unwrap_err();
    for words in ["net.core.somaxconn is \"128\", not \"777\"", "cni-masquerade-net is missing", "lacks 10.9.0.2"] {
        assert!(failure.msg.contains(words), "{words}: {failure:?}");
    }
    node.del(eth0("c1", &pod), &config).unwrap();
    node.assert_clean("deleted");
    config["sysctl"] = json!({"kernel.hostname": "x"});
    let failure = node.add(eth0("c1", &pod), &config).unwrap_err();
    assert!(failure.code == 7 && failure.msg.contains("sysctl.kernel.hostname"), "{failure:?}");
}

/// The networks that pods reach under their own address are those of the pods there are, also after they changed.
#[test]
fn the_networks_of_a_masquerade_follow_the_configuration() {
    let (node, pods) = (Node::new(), [(); 2].map(|()| Netns::create().unwrap()));
    let mut config = node.native("1.1.0");
    config["ipMasq"] = true.into();
    let networks = |lines: &str| {
        let subnet = "FLANNEL_SUBNET=10.9.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        std::fs::write(node.subnet_file(), format!("FLANNEL_NETWORK={lines}\n{subnet}")).unwrap();
    };
    let own = || {
        let text = nft(&node, "list set inet cni-masquerade-net own4");
        text.split_once("elements = {")
            .map(|(_, rest)| rest.replace(['{', '}', '\n', '\t', ' '], ""))
            .unwrap_or_default()
    };
    networks("10.0.0.0/8");
    let old = node.add(eth0("old", &pods[0]), &config).unwrap();
    assert_eq!(own(), "10.0.0.0/8");
    // A narrower one lies within that of the pod that is still there, and takes its place with it.
    networks("10.9.0.0/16,192.0.2.0/24");
    let new = node.add(eth0("new", &pods[1]), &config).unwrap();
    assert_eq!(own(), "10.0.0.0/8,192.0.2.0/24");
    node.check(eth0("old", &pods[0]), &config, &old).unwrap();
    node.check(eth0("new", &pods[1]), &config, &new).unwrap();
    node.del(eth0("old", &pods[0]), &config).unwrap();
    for damage in
        ["flush set inet cni-masquerade-net own4", "add element inet cni-masquerade-net own4 { 172.16.0.0/12 }"]
    {
        node.gc(&config, &[("new", "eth0")]).unwrap();
        assert_eq!(own(), "10.9.0.0/16,192.0.2.0/24", "before {damage}");
        node.check(eth0("new", &pods[1]), &config, &new).unwrap();
        nft(&node, damage);
        let failure = node.check(eth0("new", &pods[1]), &config, &new).unwrap_err();
        assert!(failure.msg.contains("others than 10.9.0.0/16, 192.0.2.0/24"), "{failure:?}");
    }
    let _inside = node.host.enter().unwrap();
    let mut restorer = Restorer::new(Held::by(Attachments::recorded_in(node.attachments())));
    assert!(restorer.restore(&mut Nft::open().unwrap()).unwrap());
    assert_eq!(own(), "10.9.0.0/16,192.0.2.0/24");
    node.del(eth0("new", &pods[1]), &config).unwrap();
    node.assert_clean("deleted");
}

/// Nodes that are namespaces end without a DEL for each pod: what was recorded for them goes with the next GC elsewhere.
#[test]
fn records_of_nodes_that_are_no_more_go_with_gc() {
    let (mut node, pod) = (Node::new(), Netns::create().unwrap());
    let mut config = node.native("1.1.0");
    config["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let [dead, _living] = ["c1", "c2"].map(|name| {
        node.add(eth0(name, &pod), &config).unwrap();
        ip(&pod, "link del eth0");
        std::mem::replace(&mut node.host, Netns::create().unwrap())
    });
    let count = |base: PathBuf| std::fs::read_dir(base).into_iter().flatten().count();
    let places = || (count(node.attachments()), count(node.host_ports()));
    assert_eq!(places(), (2, 2));
    node.gc(&config, &[]).unwrap();
    assert_eq!(places(), (2, 2), "both nodes live");
    drop(dead);
    // In a container of its own a process cannot tell.
    let wanted = if kernel::netns::sees_all_processes() { (1, 1) } else { (2, 2) };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while places() != wanted && std::time::Instant::now() < deadline {
        node.gc(&config, &[]).unwrap();
    }
    assert_eq!(places(), wanted);
}
