//! A range that is full of the dead heals by itself: after a reboot, after pods that ended without DEL, in chains that
//! never get as far as DEL, and in directories that the reference has filled. Nobody who is alive loses an address.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, Failure, Node, Plugins, addresses, eth0, host_end, ip, with_environment};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs::{self, File, FileTimes};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// Two subnets with 13 addresses that nobody else on this machine uses: what is in use anywhere is never freed.
fn subnets(test: u32) -> [String; 2] {
    let process = std::process::id();
    let (high, low) = (128 + process / 256 % 128, process % 256);
    [format!("10.{high}.{low}.{}/28", test * 16), format!("fd00:{high}:{low}:{test}::/124")]
}

fn config(node: &Node, test: u32, families: usize) -> Value {
    let subnets = subnets(test);
    let subnets: Vec<&str> = subnets.iter().take(families).map(String::as_str).collect();
    let mut config = node.bridge("1.0.0", &subnets);
    // An IPv6 range has no broadcast address: 13 of each.
    if families == 2 {
        let end = subnets[1].replace("::/124", "::e");
        config["ipam"]["ranges"][1][0]["rangeEnd"] = end.into();
    }
    config
}

/// A node with 13 pods, which is all that the range has.
fn full(test: u32) -> (Node, Value, Vec<Netns>, Vec<Value>) {
    let node = Node::new();
    let config = config(&node, test, 2);
    let pods: Vec<Netns> = (0..13).map(|_| Netns::create().unwrap()).collect();
    let add = |(pod, netns): (usize, &Netns)| node.add(eth0(&format!("pod{pod}"), netns), &config).unwrap();
    let results = pods.iter().enumerate().map(add).collect();
    (node, config, pods, results)
}

/// ADD in the next boot: in a mount namespace in which the kernel's file says so.
fn add_after_reboot(node: &Node, attachment: Attachment<'_>, config: &Value) -> Result<Value, Failure> {
    let boot = node.dir.path().join("boot_id");
    fs::write(&boot, "11111111-2222-3333-4444-555555555555\n").unwrap();
    let script = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec {}",
        boot.display(),
        env!("CARGO_BIN_EXE_cni-plugin")
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    node.answer(with_environment(&mut command, "ADD", attachment, &attachment.netns.path()), config)
}

/// ADD, again and again as a runtime does, while the kernel is still taking down namespaces that nobody is in any more.
fn add_in_time(node: &Node, attachment: Attachment<'_>, config: &Value) -> Value {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        match node.add(attachment, config) {
            Ok(result) => return result,
            Err(failure) => {
                assert!(failure.msg.contains("no IP addresses available"), "{failure:?}");
                assert!(Instant::now() < deadline, "{failure:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn pods_keep_their_addresses_while_they_live_and_lose_them_with_the_boot() {
    let (node, config, pods, results) = full(0);
    let late = Netns::create().unwrap();
    let refused = |context: &str| {
        let failure = node.add(eth0("late", &late), &config).unwrap_err();
        assert!(failure.msg.contains("(13 belong to pods that are alive, 0 to"), "{context}: {failure:?}");
    };
    refused("all are alive");
    ip(&node.host, &format!("link del {}", host_end(&results[4])));
    refused("a pod without its veth is alive");
    ip(&pods[5], "addr flush dev eth0");
    refused("and so is one without its address");
    let result = add_after_reboot(&node, eth0("late", &late), &config).unwrap();
    assert_eq!(node.reservations().into_iter().collect::<Vec<_>>(), addresses(&result));
    assert_eq!(node.veths().len(), 1, "what was left of the dead went first");
}

#[test]
fn pods_that_end_without_del_make_room() {
    let (node, config, mut pods, results) = full(1);
    // In the place of the descriptor that the pod's path named is another namespace.
    drop(pods.remove(3));
    let late = Netns::create().unwrap();
    let result = add_in_time(&node, eth0("late", &late), &config);
    assert_eq!(addresses(&result), addresses(&results[3]));
    let failure = node.add(eth0("later", &late), &config).unwrap_err();
    assert!(failure.msg.contains("(13 belong to pods that are alive, 0 to"), "{failure:?}");
    drop(pods);
    for pod in 0..12 {
        let netns = Netns::create().unwrap();
        add_in_time(&node, eth0(&format!("new{pod}"), &netns), &config);
    }
}

/// The runtime's DEL ends at the first plugin that fails, and a plugin that is missing always does: the addresses of its
/// attempts are never released, but the namespaces of its sandboxes end.
#[test]
fn attempts_that_nobody_undoes_do_not_fill_the_range() {
    let node = Node::new();
    let config = config(&node, 2, 2);
    for attempt in 0..50 {
        let netns = Netns::create().unwrap();
        add_in_time(&node, eth0(&format!("attempt{attempt}"), &netns), &config);
        assert!(node.reservations().len() <= 26);
    }
    node.gc(&config, &[]).unwrap();
    node.assert_clean("after GC");
}

#[test]
fn what_led_to_the_dead_does_not_lead_to_their_heirs() {
    let node = Node::new();
    let subnet = subnets(3)[0].replace(".48/28", ".49/30");
    node.write_subnet_file(&subnet, None);
    let mut plain = node.native("1.0.0");
    plain["hostPortsDir"] = node.dir.path().join("host-ports").to_str().into();
    let mut config = plain.clone();
    config["runtimeConfig"] = json!({"portMappings": [{"hostPort": 18_080, "containerPort": 80, "protocol": "tcp"}]});
    let rules = || {
        let inside = node.host.enter().unwrap();
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        drop(inside);
        String::from_utf8(output.stdout).unwrap()
    };
    let pod = Netns::create().unwrap();
    let result = node.add(eth0("dead", &pod), &config).unwrap();
    assert!(rules().contains("18080"), "{}", rules());
    drop(pod);
    let heir = Netns::create().unwrap();
    let next = add_in_time(&node, eth0("heir", &heir), &plain);
    assert_eq!(addresses(&next), addresses(&result));
    assert!(!rules().contains("18080"), "{}", rules());
}

/// Files of the reference say nothing of boot or namespace: in this boot they are left alone, whatever they hold.
#[test]
fn a_directory_that_the_reference_has_filled_heals_with_the_reboot() {
    let node = Node::new();
    let config = config(&node, 4, 1);
    let reference = |verb: &str, container: &str| {
        let mut config = config.clone();
        config["type"] = "host-local".into();
        let netns = Netns::create().unwrap();
        node.call(Plugins::Reference, verb, eth0(container, &netns), &config)
    };
    for pod in 0..13 {
        reference("ADD", &format!("go{pod}")).unwrap();
    }
    let pod = Netns::create().unwrap();
    let failure = node.add(eth0("pod", &pod), &config).unwrap_err();
    assert!(
        failure.msg.contains("(0 belong to pods that are alive, 13 to pods of which nothing is known"),
        "{failure:?}"
    );
    // One that a power failure left, which is nobody's.
    let network = node.networks().join("net");
    let subnet = subnets(4)[0].replace(".64/28", "");
    let file = |last: u32| network.join(format!("{subnet}.{}", 64 + last));
    File::create(file(5)).unwrap();
    fs::write(file(6), "go\r\n").unwrap();
    let first = add_in_time(&node, eth0("pod", &pod), &config);
    assert!([file(5), file(6)].iter().any(|file| file.ends_with(addresses(&first)[0].to_string())), "{first}");
    node.del(eth0("pod", &pod), &config).unwrap();
    reference("ADD", "more5").unwrap();
    reference("ADD", "more6").unwrap();
    // Before the boot, by their age. One of them is in use all the same, on an interface that nobody knows of.
    for last in 2..15 {
        let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000));
        File::options().write(true).open(file(last)).unwrap().set_times(times).unwrap();
    }
    let survivor = Netns::create().unwrap();
    ip(&survivor, &format!("addr add {subnet}.72/32 dev lo"));
    let result = add_in_time(&node, eth0("pod", &pod), &config);
    let left = node.reservations();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&addresses(&result)[0]) && file(8).exists());
    // The reference can take over at any time, and we from it.
    reference("ADD", "again").unwrap();
    reference("DEL", "go3").unwrap();
    assert_eq!(node.reservations().len(), 3);
    reference("DEL", "again").unwrap();
    reference("DEL", "pod").unwrap();
    assert_eq!(node.reservations().len(), 1);
}
