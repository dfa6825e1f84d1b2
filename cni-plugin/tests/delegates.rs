//! Plugins of somebody else's that are asked for addresses and do not answer: they end with whoever asked, they are in nobody's
//! way, and DEL removes what is ours all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, Node, eth0, with_environment};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node with a plugin for addresses that tells its process number, and then does what `script` says.
struct Trouble {
    node: Node,
    told: PathBuf,
}

impl Trouble {
    fn new() -> Self {
        let node = Node::new();
        let told = node.dir.path().join("told");
        Trouble { node, told }
    }

    fn script(&self, script: &str) {
        let path = self.node.dir.path().join("addresses");
        let told = self.told.display();
        fs::write(&path, format!("#!/bin/sh\necho $$ >{told}.draft; mv {told}.draft {told}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(&self) -> Value {
        let mut config = self.node.bridge("1.0.0", &["10.9.0.0/24"]);
        config["ipam"] = json!({"type": "addresses"});
        // What ADD answered, as runtimes tell it to DEL.
        config["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.9/24"}]});
        config
    }

    fn start(&self, verb: &str, attachment: Attachment<'_>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-plugin"));
        let inside = self.node.host.enter().unwrap();
        let mut child = with_environment(&mut command, verb, attachment, &attachment.netns.path())
            .env("CNI_PATH", self.node.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(inside);
        child.stdin.take().unwrap().write_all(self.config().to_string().as_bytes()).unwrap();
        child
    }

    /// The error of a call, or none.
    fn call(&self, verb: &str, attachment: Attachment<'_>) -> Option<Value> {
        let output = self.start(verb, attachment).wait_with_output().unwrap();
        (!output.status.success()).then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The process that has told its number.
    fn process(&self) -> PathBuf {
        await_that("the plugin starts", || self.told.exists());
        Path::new("/proc").join(fs::read_to_string(&self.told).unwrap().trim())
    }
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// Runtimes kill a plugin at the end of their patience, and then wait for the end of its pipes.
#[test]
fn who_hangs_ends_with_us_and_is_in_nobodys_way() {
    let trouble = Trouble::new();
    trouble.script("exec sleep 1000");
    let (pod, other) = (Netns::create().unwrap(), Netns::create().unwrap());
    for verb in ["ADD", "DEL"] {
        let _ = fs::remove_file(&trouble.told);
        let mut asking = trouble.start(verb, eth0("stuck", &pod));
        let hanging = trouble.process();
        // The same bridge, and the records of the same network.
        let config = trouble.node.bridge("1.0.0", &["10.9.0.0/24"]);
        trouble.node.add(eth0("other", &other), &config).unwrap();
        trouble.node.del(eth0("other", &other), &config).unwrap();
        assert!(hanging.exists() && asking.try_wait().unwrap().is_none(), "{verb}");
        asking.kill().unwrap();
        // Not before all have closed the pipes.
        asking.wait_with_output().unwrap();
        await_that("the plugin is gone", || !hanging.exists());
    }
    trouble.node.assert_clean("nothing was made");
}

/// What a wrapper has started is not ours to end once we are killed, but it has nothing of the runtime's.
#[test]
fn what_a_plugin_has_started_holds_no_pipe_of_the_runtimes() {
    let trouble = Trouble::new();
    let left = trouble.node.dir.path().join("left");
    let name = left.display();
    trouble.script(&format!("sleep 1000 & echo $! >{name}.draft; mv {name}.draft {name}; wait"));
    let pod = Netns::create().unwrap();
    let mut asking = trouble.start("ADD", eth0("stuck", &pod));
    let wrapper = trouble.process();
    await_that("the wrapper starts another", || left.exists());
    let other: i32 = fs::read_to_string(&left).unwrap().trim().parse().unwrap();
    // Also where this test fails: then what it waits for ends with the other.
    let (tell, told) = std::sync::mpsc::channel();
    asking.kill().unwrap();
    std::thread::spawn(move || tell.send(asking.wait_with_output().is_ok()));
    let all_closed = told.recv_timeout(PATIENCE);
    let is_there = nix::sys::signal::kill(nix::unistd::Pid::from_raw(other), nix::sys::signal::Signal::SIGKILL).is_ok();
    assert_eq!((all_closed, is_there), (Ok(true), true));
    await_that("the wrapper is gone", || !wrapper.exists());
}

#[test]
fn what_a_plugin_says_on_standard_error_is_said_on_ours() {
    let trouble = Trouble::new();
    let pod = Netns::create().unwrap();
    trouble.script("echo a word >&2; sleep 0.2; echo and another >&2; exit 1");
    let output = trouble.start("ADD", eth0("box", &pod)).wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "a word\nand another\n");
    // More than a pipe holds, and nobody who reads it.
    trouble.script("head -c 500000 /dev/zero >&2; exit 1");
    let mut asking = trouble.start("ADD", eth0("box", &pod));
    await_that("a log is nothing to wait for", || asking.try_wait().unwrap().is_some());
}

#[test]
fn what_is_ours_goes_also_where_the_addresses_cannot() {
    let trouble = Trouble::new();
    let pod = Netns::create().unwrap();
    trouble.script(r#"echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.9/24"}]}'"#);
    assert_eq!(trouble.call("ADD", eth0("box", &pod)), None);
    assert_eq!(trouble.node.veths().len(), 1);
    trouble.script(r#"echo '{"cniVersion": "1.0.0", "code": 11, "msg": "its daemon does not answer"}'; exit 1"#);
    let error = trouble.call("DEL", eth0("box", &pod)).unwrap();
    assert_eq!((&error["code"], error["msg"].as_str()), (&json!(11), Some("addresses: its daemon does not answer")));
    assert_eq!(trouble.node.veths().len(), 0);
    trouble.script("exit 0");
    assert_eq!(trouble.call("DEL", eth0("box", &pod)), None);
    trouble.node.assert_clean("all is gone");
}
