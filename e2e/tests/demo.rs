//! The demonstration as its user runs it: with and without root, to the end and interrupted, and what it leaves: nothing.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
// Starting processes is what this crate is for.
#![allow(clippy::disallowed_methods)]

use e2e::workdir::WorkDir;
use e2e::{eventually, tools};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The user nobody of Debian.
const NOBODY: u32 = 65534;

fn demo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_demo"))
}

#[test]
fn host_gw_with_root() {
    let output = demo().args(["--output", "json", "--nodes", "2", "--backend", "host-gw"]).output().unwrap();
    assert_good(&output, 2);
}

#[test]
fn vxlan_without_root() {
    // Nobody may not look into the directories of whoever builds.
    let work = WorkDir::new().unwrap();
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let path = work.path().join(name);
        fs::copy(from, &path).unwrap();
        path
    };
    let demo = copy(Path::new(env!("CARGO_BIN_EXE_demo")), "demo");
    let output = Command::new(demo)
        .args(["--output", "json", "--nodes", "2"])
        .env("CNI_PLUGIN", copy(&tools::cni_plugin().unwrap(), "cni-plugin"))
        .env("FLANNELD", copy(&tools::flanneld().unwrap(), "flanneld-rs"))
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_good(&output, 2);
}

fn assert_good(output: &Output, nodes: usize) {
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let meetings = report["meetings"].as_array().unwrap();
    assert_eq!(meetings.len(), (2 * nodes).pow(2));
    assert!(meetings.iter().all(|meeting| meeting["without_nat"] == true), "{report:#}");
    assert!(report["throughput"]["bits_per_second"].as_f64().unwrap() > 1e7, "{report:#}");
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults[0]["lost"], 0, "killing the daemon: {report:#}");
    let outage = faults[1]["outage_ms"].as_f64().unwrap();
    assert!(faults[1]["lost"].as_u64().unwrap() > 0, "something was really broken: {report:#}");
    assert!(outage < 2000.0, "healing: {report:#}");
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child =
            demo().args(["--keep", "--nodes", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mark = format!("flannel-rs-e2e.{}.", child.id());
        let messages = BufReader::new(child.stderr.take().unwrap());
        let kept = messages.lines().map_while(Result::ok).any(|line| line.contains("until you press Ctrl-C"));
        assert!(kept, "the cluster was not kept");
        assert!(processes(&mark) > 4, "this test does not find the cluster's processes");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        assert_eq!(directories(&mark), 0, "a directory is left");
        eventually(Duration::from_secs(1), || match processes(&mark) {
            0 => Ok(()),
            number => Err(format!("{number} processes are left").into()),
        })
        .unwrap();
    }
}

#[test]
fn a_killed_demo_leaves_no_process() {
    let mut child =
        demo().args(["--keep", "--nodes", "2"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mark = format!("flannel-rs-e2e.{}.", child.id());
    let messages = BufReader::new(child.stderr.take().unwrap());
    assert!(messages.lines().map_while(Result::ok).any(|line| line.contains("is ready")));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually(Duration::from_secs(2), || match processes(&mark) {
        0 => Ok(()),
        number => Err(format!("{number} processes are left").into()),
    })
    .unwrap();
    // Its directory is removed by the next run of anything here.
    drop(WorkDir::new().unwrap());
    assert_eq!(directories(&mark), 0, "a directory is left");
}

#[test]
fn nonsense_is_refused_in_one_line() {
    for (args, word) in
        [(["--nodes", "0"], "nodes"), (["--backend", "ipsec"], "backend"), (["--store", "paper"], "store")]
    {
        let output = demo().args(args).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && messages.contains(word), "{args:?}: {messages}");
    }
}

/// How many processes have `mark` (the name of a run's directory) in their environment.
fn processes(mark: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let environments = entries.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
    environments.filter(|environment| String::from_utf8_lossy(environment).contains(mark)).count()
}

fn directories(mark: &str) -> usize {
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(mark)).count()
}
