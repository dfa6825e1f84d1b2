//! Killed between any two system calls, ADD and DEL leave nothing that the next DEL or GC does not find.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{IPV4, IPV6, Node, eth0, with_environment};
use kernel::netns::Netns;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

const PLUGIN: &str = env!("CARGO_BIN_EXE_cni-plugin");

/// Runs `verb` for c1 under strace with `options`; whether it came to its end.
fn run(node: &Node, pod: &Netns, verb: &str, config: &Value, options: &[&str]) -> bool {
    let mut command = Command::new("strace");
    command.arg("-qq").args(options).arg(PLUGIN);
    with_environment(&mut command, verb, eth0("c1", pod), &pod.path());
    let inside = node.host.enter().unwrap();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = spawned.expect("these tests use strace: apt-get install strace");
    drop(inside);
    // It may be dead by now.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes());
    child.wait().unwrap().success()
}

/// The system calls of a trace, each with the number of its kind: strace counts each kind by itself.
fn calls(trace: &str) -> Vec<(String, usize)> {
    let mut seen = BTreeMap::<&str, usize>::new();
    let names = trace.lines().filter_map(|line| Some(line.split_once('(')?.0));
    let is_call = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    names
        .filter(is_call)
        .map(|name| {
            let number = seen.entry(name).or_default();
            *number += 1;
            (name.to_owned(), *number)
        })
        // Of what happens before main there is nothing to learn.
        .filter(|(name, _)| !matches!(name.as_str(), "execve" | "brk" | "mprotect" | "arch_prctl"))
        .collect()
}

/// Kills `verb` at every second system call, beginning with `first`, each time followed by DEL (for c1) or GC.
fn kill_everywhere(verb: &str, first: usize, then: &str) {
    let (node, pod, bystander) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.1.0", &[IPV4, IPV6]);
    let result = node.add(eth0("bystander", &bystander), &config).unwrap();
    let untouched = (node.veths(), node.neighbours(), node.reservations());
    let attempt = |options: &[&str]| {
        if verb == "DEL" {
            node.add(eth0("c1", &pod), &config).unwrap();
        }
        let survived = run(&node, &pod, verb, &config, options);
        match then {
            "DEL" => drop(node.del(eth0("c1", &pod), &config).unwrap()),
            _ => drop(node.gc(&config, &[("bystander", "eth0")]).unwrap()),
        }
        let left = (node.veths(), node.neighbours(), node.reservations());
        assert_eq!(left, untouched, "{verb} killed by {options:?}, then {then}");
        let draft = node.networks().join(".index/net/reservation");
        assert!(!draft.exists(), "{verb} killed by {options:?}, then {then}: {}", draft.display());
        survived
    };
    let trace = node.dir.path().join("trace");
    assert!(attempt(&["-o", trace.to_str().unwrap()]));
    let calls = calls(&std::fs::read_to_string(&trace).unwrap());
    assert!(calls.len() > 80, "{verb} makes {} system calls only? {calls:?}", calls.len());
    let survivals =
        calls.iter().skip(first).step_by(2).filter(|(name, number)| {
            attempt(&["-o", "/dev/null", &format!("--inject={name}:signal=KILL:when={number}")])
        });
    // Reading the random seed and the like may differ from run to run.
    let survivals = survivals.count();
    assert!(survivals < calls.len() / 10, "{survivals} of {} calls were not met again", calls.len());
    node.check(eth0("bystander", &bystander), &config, &result).unwrap();
}

#[test]
fn a_killed_add_is_undone_by_del() {
    kill_everywhere("ADD", 0, "DEL");
}

#[test]
fn a_killed_add_is_undone_by_gc() {
    kill_everywhere("ADD", 1, "GC");
}

#[test]
fn a_killed_del_is_finished_by_del() {
    kill_everywhere("DEL", 0, "DEL");
}

#[test]
fn a_killed_del_is_finished_by_gc() {
    kill_everywhere("DEL", 1, "GC");
}
