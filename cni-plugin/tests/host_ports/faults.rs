//! What is lost is found again: from the records.

use crate::harness::{eth0, with_environment};
use crate::world::{NODE, Pod, Stack, World, ask_tcp, mapping};
use cni_plugin::host_ports::TABLE;
use cni_plugin::restore::Restorer;
use kernel::netns::Netns;
use kernel::nft::Nft;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

fn web(port: u16) -> Value {
    json!([mapping(port, 80, "tcp")])
}

#[test]
fn a_flushed_ruleset_is_restored_by_the_next_call() {
    for stack in [Stack::Chain, Stack::Native] {
        let world = World::new(stack);
        let _web = Pod::start(&world, "web", &web(8080));
        let other = Pod::start(&world, "other", &web(8081));
        let intact = world.elements();
        let flushes =
            ["flush ruleset".to_owned(), format!("flush table ip {TABLE}"), format!("delete table ip6 {TABLE}")];
        for flush in &flushes {
            world.nft(flush);
            let third = Pod::start(&world, "third", &web(8082));
            for address in NODE {
                assert_eq!(ask_tcp(&world.outside, address, 8080).unwrap().0, "web", "{stack:?}, ADD after {flush}");
            }
            world.nft(flush);
            world.del(third.attachment(), &web(8082)).unwrap();
            for address in NODE {
                assert_eq!(ask_tcp(&world.outside, address, 8081).unwrap().0, "other", "{stack:?}, DEL after {flush}");
            }
            assert_eq!(world.elements(), intact, "{stack:?}, {flush}");
        }
        drop(other);
    }
}

#[test]
fn the_daemon_restores_what_is_gone_and_reads_little_else() {
    let world = World::new(Stack::Native);
    let _inside = world.node.host.enter().unwrap();
    let mut nft = Nft::open().unwrap();
    let mut restorer = Restorer::new(world.ports());
    assert!(!restorer.restore(&mut nft).unwrap());
    assert!(!world.directory().exists(), "without a port there is nothing to look at, and nothing is made");
    let pod = Pod::start(&world, "web", &web(8080));
    assert!(!restorer.restore(&mut nft).unwrap(), "nothing is missing");
    let intact = world.elements();
    for damage in [
        "flush ruleset".to_owned(),
        format!("flush map ip {TABLE} ports"),
        format!("flush chain ip6 {TABLE} prerouting"),
        format!("add element ip {TABLE} ports {{ udp . 1 : 10.9.0.9 . 1 }}"),
    ] {
        world.nft(&damage);
        // As after its rest, which no test of seconds waits for.
        let mut restorer = Restorer::new(world.ports());
        assert!(restorer.restore(&mut nft).unwrap(), "{damage}");
        assert!(!restorer.restore(&mut nft).unwrap(), "{damage}");
        assert_eq!(world.elements(), intact, "{damage}");
        assert_eq!(ask_tcp(&world.outside, NODE[0], 8080).unwrap().0, "web", "{damage}");
    }
    // A flush is noticed at once, however soon after another look.
    let mut restorer = Restorer::new(world.ports());
    restorer.restore(&mut nft).unwrap();
    world.nft("flush ruleset");
    assert!(restorer.restore(&mut nft).unwrap());
    world.del(pod.attachment(), &web(8080)).unwrap();
    assert!(!restorer.restore(&mut nft).unwrap());
    world.assert_no_ports("after DEL");
}

#[test]
fn what_a_former_boot_recorded_is_forgotten() {
    let world = World::new(Stack::Native);
    let old = world.directory().join("0af2c6a8-0000-4000-8000-000000000000.netns-1");
    std::fs::create_dir_all(old.join("records")).unwrap();
    std::fs::write(old.join("records/damaged"), "{").unwrap();
    let _web = Pod::start(&world, "web", &web(8080));
    assert!(!old.exists());
    assert_eq!(std::fs::read_dir(world.directory()).unwrap().count(), 1);
}

#[test]
fn two_hosts_of_one_machine_do_not_share_ports() {
    let (one, two) = (World::new(Stack::Native), World::new(Stack::Native));
    let shared = one.directory();
    for world in [&one, &two] {
        let mut config = world.configs(&web(8080)).remove(0);
        config["hostPortsDir"] = json!(shared);
        world.node.add(eth0("web", &Netns::create().unwrap()), &config).unwrap();
        assert_eq!(world.elements().len(), 4);
    }
}

/// One network's subnet within another's: prefixes that an nftables set cannot hold side by side.
#[test]
fn subnets_within_subnets_come_and_go() {
    let world = World::new(Stack::Chain);
    let ports = world.ports();
    let _inside = world.node.host.enter().unwrap();
    let record = |name: &str, pod: &str, port: u16| {
        let mut record: Value = json!({"network": "net", "container": name, "interface": "eth0"});
        record["forwards"] = json!([{
            "protocol": "tcp", "host": "0.0.0.0", "hostPort": port, "pod": pod, "podPort": 80, "masquerade": "neighbours",
        }]);
        serde_json::from_value(record).unwrap()
    };
    let id = |name: &str| cni_spec::AttachmentId::new(name, "eth0").unwrap();
    let subnets = || world.elements().into_iter().filter(|line| line.contains("subnets")).collect::<Vec<_>>();
    for [first, second] in [["wide", "narrow"], ["narrow", "wide"]] {
        let pod = |name: &str| if name == "wide" { "10.0.0.9/8" } else { "10.9.0.9/24" };
        ports.publish(&record(first, pod(first), 1)).unwrap();
        ports.publish(&record(second, pod(second), 2)).unwrap();
        ports.publish(&record("third", "10.9.0.10/24", 3)).unwrap();
        ports.withdraw(&id("third")).unwrap();
        assert!(subnets().len() == 1 && subnets()[0].contains("\"len\":8"), "{:?}", subnets());
        ports.withdraw(&id("wide")).unwrap();
        assert!(subnets().len() == 1 && subnets()[0].contains("\"len\":24"), "{:?}", subnets());
        ports.withdraw(&id("narrow")).unwrap();
        world.assert_no_ports("both gone");
    }
}

/// Runs `verb` for c1 under strace with `options`; whether it came to its end.
fn run(world: &World, pod: &Netns, verb: &str, config: &Value, options: &[&str]) -> bool {
    let mut command = Command::new("strace");
    command.arg("-qq").args(options).arg(env!("CARGO_BIN_EXE_cni-plugin"));
    with_environment(&mut command, verb, eth0("c1", pod), &pod.path());
    let inside = world.node.host.enter().unwrap();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = spawned.expect("these tests use strace: apt-get install strace");
    drop(inside);
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes());
    child.wait().unwrap().success()
}

/// The system calls of a run, each with the number of its kind: strace counts each kind by itself.
pub(crate) fn calls(world: &World, pod: &Netns, verb: &str, config: &Value) -> Vec<(String, usize)> {
    let trace = world.node.dir.path().join("trace");
    assert!(run(world, pod, verb, config, &["-o", trace.to_str().unwrap()]), "{verb} failed");
    let mut seen = BTreeMap::<String, usize>::new();
    let text = std::fs::read_to_string(&trace).unwrap();
    let names = text.lines().filter_map(|line| Some(line.split_once('(')?.0.to_owned()));
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .map(|name| {
            let number = seen.entry(name.clone()).or_default();
            *number += 1;
            (name, *number)
        })
        .collect()
}

/// What the `nft` program makes of the golden files is what our tables list as, but for the hashes behind the comments.
#[test]
fn the_tables_are_what_nft_makes_of_their_text() {
    let world = World::new(Stack::Chain);
    let pod = Pod::start(&world, "web", &web(8080));
    let theirs = Netns::create().unwrap();
    for (family, file) in [("ip", "host_ports_ipv4.nft"), ("ip6", "host_ports_ipv6.nft")] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let nft = |netns: &Netns, arguments: &[&str]| {
            let _inside = netns.enter().unwrap();
            let output = Command::new("nft").args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        nft(&theirs, &["-f", path.to_str().unwrap()]);
        let rules = |netns: &Netns| {
            let listing = nft(netns, &["list", "table", family, TABLE]);
            let chains = listing.split_once("\tchain").unwrap().1.to_owned();
            let line =
                |line: &str| line.split_once(" #").map_or(line, |(rule, _hash)| rule).trim_end_matches('"').to_owned();
            chains.lines().map(line).collect::<Vec<_>>()
        };
        assert_eq!(rules(&world.node.host), rules(&theirs), "{family}");
    }
    drop(pod);
}
