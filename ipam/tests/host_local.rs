//! The executable, by turns with the reference plugin on one directory, in crowds, and under fire.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)] // tests start processes, and a broken set-up must fail at once

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::tempdir;

const OURS: &str = env!("CARGO_BIN_EXE_host-local");
const REFERENCE: &str = "/usr/lib/cni/host-local";

fn config(directory: &Path, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": directory},
    })
}

fn start(executable: &str, verb: &str, container_id: &str, config: &Value) -> Child {
    let mut child = Command::new(executable)
        .env_clear()
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container_id), ("CNI_NETNS", "/proc/self/ns/net")])
        .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/usr/lib/cni")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{executable} (package containernetworking-plugins): {error}"));
    // A process that is killed early does not read.
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).ok();
    child
}

/// The answer, and whether it is a success.
fn finish(child: Child) -> (bool, Value) {
    let output = child.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

fn run(executable: &str, verb: &str, container_id: &str, config: &Value) -> (bool, Value) {
    finish(start(executable, verb, container_id, config))
}

fn address((success, answer): (bool, Value)) -> String {
    assert!(success, "{answer}");
    answer["ips"][0]["address"].as_str().unwrap().to_owned()
}

/// Reservations by address, read without either plugin.
fn reservations(directory: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(directory.join("cbr0")) else { return BTreeMap::new() };
    let entries = entries.map(|entry| entry.unwrap());
    let address = |name: String| name.starts_with("10.").then_some(name);
    entries
        .filter_map(|entry| {
            Some((address(entry.file_name().into_string().unwrap())?, fs::read_to_string(entry.path()).unwrap()))
        })
        .collect()
}

#[test]
fn takes_turns_with_the_reference() {
    let directory = tempdir().unwrap();
    let config = config(directory.path(), "10.1.0.0/26");
    let by_turns = |turn: usize| if turn.is_multiple_of(2) { OURS } else { REFERENCE };
    for turn in 0..20 {
        let given = address(run(by_turns(turn), "ADD", &format!("pod{turn}"), &config));
        assert_eq!(given, format!("10.1.0.{}/26", turn + 2), "one round robin for both");
    }
    for turn in 0..20 {
        // Each sees what the other gave.
        let (success, error) = run(by_turns(turn + 1), "ADD", &format!("pod{turn}"), &config);
        assert!(!success);
        let text = error["msg"].as_str().unwrap();
        let wanted =
            format!("10.1.0.{} has been allocated to pod{turn}, duplicate allocation is not allowed", turn + 2);
        assert!(text.contains(&wanted), "{text}");
    }
    assert_eq!(reservations(directory.path()).len(), 20);
    for turn in 0..20 {
        assert!(run(by_turns(turn + 1), "DEL", &format!("pod{turn}"), &config).0);
        assert!(run(by_turns(turn), "DEL", &format!("pod{turn}"), &config).0, "DEL is idempotent");
        assert_eq!(reservations(directory.path()).len(), 19 - turn);
    }
    let hidden: Vec<_> =
        fs::read_dir(directory.path().join("cbr0")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(hidden.len(), 2, "lock and last_reserved_ip.0: {hidden:?}");
}

#[test]
fn a_crowd_gets_different_addresses() {
    let directory = tempdir().unwrap();
    let config = config(directory.path(), "10.1.0.0/24");
    let executable = |pod: usize| if pod.is_multiple_of(4) { REFERENCE } else { OURS };
    let crowd: Vec<Child> = (0..64).map(|pod| start(executable(pod), "ADD", &format!("pod{pod}"), &config)).collect();
    let given: BTreeSet<String> = crowd.into_iter().map(finish).map(address).collect();
    assert_eq!(given.len(), 64);
    assert_eq!(reservations(directory.path()).len(), 64);
    let crowd: Vec<Child> =
        (0..64).map(|pod| start(executable(pod + 1), "DEL", &format!("pod{pod}"), &config)).collect();
    for child in crowd {
        assert!(finish(child).0);
    }
    assert!(reservations(directory.path()).is_empty());
}

#[test]
fn threads_of_one_process_get_different_addresses() {
    let directory = tempdir().unwrap();
    let config = config(directory.path(), "10.1.0.0/24");
    let config = cni_spec::NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
    let ipam = ipam::host_local::HostLocal::parse(&config, &cni_spec::Arguments::new()).unwrap();
    let given: BTreeSet<_> = std::thread::scope(|scope| {
        let add = |pod: usize| {
            let id = cni_spec::AttachmentId { container_id: format!("pod{pod}"), ifname: "eth0".into() };
            let (netns, args) = ("/proc/self/ns/net".into(), cni_spec::Arguments::new());
            let sandbox = cni_spec::Sandbox { id, netns, args, path: Vec::new() };
            ipam::host_local::add(&ipam, "cbr0", &sandbox, &|_, _| Ok(())).unwrap().ips[0].address
        };
        let threads: Vec<_> = (0..64).map(|pod| scope.spawn(move || add(pod))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(given.len(), 64);
}

/// SIGKILL at any moment of ADD or DEL: after the runtime's DEL nothing is left, and nothing is lost.
#[test]
fn killed_at_any_moment_nothing_leaks() {
    let directory = tempdir().unwrap();
    let config = config(directory.path(), "10.1.0.0/27");
    let mut killed = 0;
    for round in 0..120_u64 {
        let pod = format!("pod{}", round % 7);
        let verb = if round % 3 == 2 { "DEL" } else { "ADD" };
        let mut child = start(OURS, verb, &pod, &config);
        // The moment is what is tested: anywhere within the process's life of some two milliseconds.
        std::thread::sleep(Duration::from_micros(round * 25 % 2500));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        // No container has two addresses, and no address two containers (a file has one content).
        let now = reservations(directory.path());
        let owners: BTreeSet<&String> = now.values().collect();
        assert_eq!(owners.len(), now.len(), "round {round}: {now:?}");
        if round % 5 == 4 {
            assert!(run(if round % 2 == 0 { OURS } else { REFERENCE }, "DEL", &pod, &config).0);
            assert!(!reservations(directory.path()).values().any(|owner| *owner == format!("{pod}\r\neth0")));
        }
    }
    assert!(killed > 10, "only {killed} were killed");
    for pod in 0..7 {
        assert!(run(OURS, "DEL", &format!("pod{pod}"), &config).0);
    }
    assert!(reservations(directory.path()).is_empty());
    let given: BTreeSet<String> = (0..29).map(|pod| address(run(OURS, "ADD", &format!("new{pod}"), &config))).collect();
    assert_eq!(given.len(), 29);
    let (success, error) = run(OURS, "ADD", "late", &config);
    assert!(!success);
    let text = error["msg"].as_str().unwrap();
    assert!(
        text.contains("failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.30"),
        "{text}"
    );
}

#[test]
fn check_status_and_gc() {
    let directory = tempdir().unwrap();
    let mut config = config(directory.path(), "10.1.0.0/30");
    config["cniVersion"] = json!("1.1.0");
    assert!(run(OURS, "STATUS", "", &config).0);
    let (success, result) = run(OURS, "ADD", "pod0", &config);
    assert!(success);
    assert_eq!(result["ips"], json!([{"address": "10.1.0.2/30", "gateway": "10.1.0.1"}]));
    let (success, error) = run(OURS, "STATUS", "", &config);
    assert!(!success);
    assert_eq!(error["code"], 50);
    assert!(error["msg"].as_str().unwrap().contains("no IP addresses available"), "{error}");

    let mut check = config.clone();
    check["prevResult"] = result.clone();
    assert!(run(OURS, "CHECK", "pod0", &check).0);
    let (success, error) = run(OURS, "CHECK", "pod1", &check);
    assert!(!success);
    assert!(error["msg"].as_str().unwrap().contains("pod1 holds no address of range set 10.1.0.1-10.1.0.2"), "{error}");

    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "pod0", "ifname": "eth0"}]);
    assert!(run(OURS, "GC", "", &gc).0);
    assert_eq!(reservations(directory.path()).len(), 1);
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "pod0", "ifname": "eth1"}]);
    assert!(run(OURS, "GC", "", &gc).0);
    assert!(reservations(directory.path()).is_empty());
    assert!(run(OURS, "STATUS", "", &config).0);
}

/// The node has rebooted, and all its pods start at once: whoever comes first makes room for all.
#[test]
fn a_crowd_inherits_from_the_dead() {
    let directory = tempdir().unwrap();
    // Whatever is in use anywhere on this machine is not free: a subnet of our own.
    let process = std::process::id();
    let subnet = format!("10.{}.{}", 64 + process / 256 % 64, process % 256);
    let config = config(directory.path(), &format!("{subnet}.0/24"));
    fs::create_dir(directory.path().join("cbr0")).unwrap();
    for last in 2..255 {
        let file = fs::File::create(directory.path().join(format!("cbr0/{subnet}.{last}"))).unwrap();
        (&file).write_all(format!("dead{last}\r\neth0").as_bytes()).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000)).unwrap();
    }
    finish(start(OURS, "ADD", "first", &config));
    // Nobody waits until all the dead are buried.
    assert_eq!(reservations(directory.path()).len(), 253 - 64 + 1);
    finish(start(OURS, "DEL", "first", &config));
    let crowd: Vec<Child> = (0..200).map(|pod| start(OURS, "ADD", &format!("pod{pod}"), &config)).collect();
    let given: BTreeSet<String> = crowd.into_iter().map(finish).map(address).collect();
    assert_eq!(given.len(), 200);
    assert_eq!(reservations(directory.path()).len(), 200);
}
