//! `flanneld-rs uninstall` gives the node back as it was: everything that Debian's tools, /proc/sys/net and the node's
//! directory show is compared, before the first start and after.

// A test that cannot go on has failed: unwrap says where. The commands under test are run here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::node::Node;
use e2e::pod::Sandbox;
use e2e::runner::{Attachment, Network};
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netns::Netns;
use kernel::sysctl;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

/// A machine that is busy with other tests takes its time.
const LIMIT: Duration = Duration::from_secs(10);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

/// Everything that a node has, by where one looks.
type Picture = BTreeMap<String, String>;

fn picture(node: &Node) -> Picture {
    let network = &node.host.network;
    let mut picture = Picture::new();
    for args in [
        "-details link show",
        "-details address show",
        "-details -4 route show table all",
        "-details -6 route show table all",
        "-4 rule show",
        "-6 rule show",
        // What the kernel learns of neighbours by itself comes and goes.
        "-4 neigh show nud permanent",
        "-6 neigh show nud permanent",
        "-6 addrlabel list",
    ] {
        for (number, entry) in (0..).zip(oracle::ip_list(network, args).unwrap()) {
            picture.insert(format!("ip {args} #{number}"), entry.to_string());
        }
    }
    picture.insert("nft".into(), oracle::nft(network, "list ruleset").unwrap());
    network.run(|| sysctls(Path::new("/proc/sys/net"), &mut picture)).unwrap();
    tree(node.directory(), &mut picture);
    picture
}

fn sysctls(directory: &Path, picture: &mut Picture) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sysctls(&path, picture);
        } else if !path.ends_with("nf_conntrack_count") {
            // Some can be written only, and some are secret until they are set.
            let value = fs::read_to_string(&path).unwrap_or_else(|error| error.kind().to_string());
            picture.insert(path.display().to_string(), value);
        }
    }
}

/// Directories and files, but for logs and executables, which are the harness's.
fn tree(directory: &Path, picture: &mut Picture) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(target) = fs::read_link(&path) {
            picture.insert(path.display().to_string(), target.display().to_string());
        } else if path.is_file() {
            picture.insert(path.display().to_string(), String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned());
        } else if !path.ends_with("log") && !path.ends_with("bin") {
            picture.insert(path.display().to_string(), "directory".into());
            tree(&path, picture);
        }
    }
}

#[track_caller]
fn assert_same(before: &Picture, after: &Picture, when: &str) {
    let mut different: Vec<String> = Vec::new();
    for (name, value) in before {
        match after.get(name) {
            Some(now) if now == value => {}
            now => different.push(format!("{name}: {value:?} became {now:?}")),
        }
    }
    different.extend(after.iter().filter(|(name, _)| !before.contains_key(*name)).map(|new| format!("new: {new:?}")));
    assert_eq!(different, [""; 0], "{when}");
}

/// Two nodes, of which the first one is looked at: nothing about it is as a fresh namespace has it.
fn cluster(work: &WorkDir, settings: &Settings) -> Cluster {
    let mut cluster = Cluster::new(settings, work.path()).unwrap();
    for _ in 0..2 {
        let node = cluster.add_node().unwrap();
        let conflists = node.directory().join("net.d");
        fs::create_dir(&conflists).unwrap();
        fs::write(conflists.join("99-loopback.conf"), "{}").unwrap();
        // One that the operator names is his: it stays.
        fs::write(node.directory().join("wireguard.key"), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        node.add_flags(&["--cni-conf-dir", conflists.to_str().unwrap()]);
        as_an_administrator_left_it(&node.host.network);
    }
    cluster
}

fn as_an_administrator_left_it(node: &Netns) {
    node.run(|| {
        for (key, value) in [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv4/conf/eth0/forwarding", "1"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/all/rp_filter", "2"),
        ] {
            sysctl::set(key, value).unwrap();
        }
    })
    .unwrap();
    oracle::ip(node, "route add blackhole 198.51.100.0/24 proto static").unwrap();
    oracle::ip(node, "rule add to 198.51.100.0/24 table 77").unwrap();
    oracle::nft(node, "add table ip mine").unwrap();
    oracle::nft(node, "add chain ip mine forward { type filter hook forward priority 5 ; }").unwrap();
}

/// What an uninstall has done.
fn uninstall(node: &Node) -> Vec<Value> {
    let report: Value = serde_json::from_str(&node.uninstall(&["--output", "json"]).unwrap()).unwrap();
    assert_eq!(report["dry_run"], false);
    report["items"].as_array().unwrap().clone()
}

/// A picture that does not change while one looks twice: the kernel notices in its own time that a device has lost its holder.
fn stable_picture(node: &Node) -> Picture {
    eventually(LIMIT, || {
        let first = picture(node);
        std::thread::sleep(Duration::from_millis(20));
        if first == picture(node) { Ok(first) } else { Err("still changing".into()) }
    })
    .unwrap()
}

fn gives_the_node_back(backend: Backend, families: Families) {
    let work = work();
    let mut cluster = cluster(&work, &Settings::new(backend, Store::File).with(families));
    let before = stable_picture(&cluster.nodes[0]);
    let when = format!("{backend}, {families:?}");
    let start = Instant::now();
    for node in &mut cluster.nodes {
        node.start_daemon().unwrap();
    }
    for node in &mut cluster.nodes {
        node.wait_ready().unwrap_or_else(|error| panic!("{when}: {error}"));
    }
    let to_ready = start.elapsed();
    let node = &mut cluster.nodes[0];
    let memory = node.directory().join("state/last-known.json");
    eventually(LIMIT, || if memory.exists() { Ok(()) } else { Err("it remembers nothing yet".into()) }).unwrap();
    assert!(node.stop_daemon().unwrap().success());
    if families == Families::Dual {
        a_dry_run_changes_nothing(node);
    }
    let done = uninstall(node);
    assert!(done.iter().all(|item| item["outcome"] == "done"), "{when}: {done:?}");
    assert_same(&before, &picture(node), &when);
    if families != Families::Dual {
        return;
    }
    assert_eq!(uninstall(node), [] as [Value; 0], "{when}");

    // Killed wherever it is, and never started again.
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    for round in 0..4 {
        let pause = to_ready * (seed >> (7 * round) & 127) / 100;
        node.start_daemon().unwrap();
        std::thread::sleep(pause);
        node.kill_daemon().unwrap();
        uninstall(node);
        assert_same(&before, &picture(node), &format!("{when}, killed after {pause:?}, ready after {to_ready:?}"));
    }
}

fn a_dry_run_changes_nothing(node: &Node) {
    let installed = stable_picture(node);
    let plan = node.uninstall(&["--dry-run"]).unwrap();
    assert_same(&installed, &picture(node), "after a dry run");
    let conflist = "net.d/10-flannel.conflist";
    for wanted in ["table      ip", "sysctl", conflist, "subnet.env", "last-known.json", "would go"] {
        assert!(plan.contains(wanted), "no {wanted:?} in\n{plan}");
    }
}

#[test]
fn after_vxlan() {
    [Families::V4, Families::V6, Families::Dual].into_iter().for_each(|f| gives_the_node_back(Backend::Vxlan, f));
}

#[test]
fn after_host_gw() {
    [Families::V4, Families::V6, Families::Dual].into_iter().for_each(|f| gives_the_node_back(Backend::HostGw, f));
}

#[test]
fn after_udp() {
    [Families::V4, Families::V6, Families::Dual].into_iter().for_each(|f| gives_the_node_back(Backend::Udp, f));
}

#[test]
fn after_wireguard() {
    [Families::V4, Families::V6, Families::Dual].into_iter().for_each(|f| gives_the_node_back(Backend::WireGuard, f));
}

/// Pods that are left still need the node to forward; once they are gone it is given back.
#[test]
fn a_node_with_pods_goes_on_forwarding() {
    let work = work();
    let mut cluster = cluster(&work, &Settings::new(Backend::HostGw, Store::File));
    let node = &mut cluster.nodes[0];
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    node.add_pod("pod").unwrap();
    let refused = node.uninstall(&[]).unwrap_err().to_string();
    assert!(refused.contains("a daemon runs") && node.directory().join("run/subnet.env").exists(), "{refused}");
    assert!(node.stop_daemon().unwrap().success());
    let forwards = |node: &Node| node.host.network.run(|| sysctl::get("net/ipv4/ip_forward").unwrap()).unwrap();
    let kept = uninstall(node);
    let switch = kept.iter().find(|item| item["name"] == "net/ipv4/ip_forward").unwrap_or_else(|| panic!("{kept:?}"));
    assert!(switch["outcome"] == "kept" && switch["reason"].as_str().unwrap().contains("pod"), "{switch}");
    assert_eq!(forwards(node), "1");
    node.remove_pod("pod").unwrap();
    // A virtual machine's way out.
    oracle::ip(&node.host.network, "tuntap add dev tap0 mode tap").unwrap();
    eventually(LIMIT, || {
        let kept = uninstall(node);
        let reason =
            kept.iter().find(|item| item["name"] == "net/ipv4/ip_forward").map(|item| item["reason"].to_string());
        if reason.as_ref().is_some_and(|reason| reason.contains("tap0")) {
            Ok(())
        } else {
            Err(format!("{kept:?}").into())
        }
    })
    .unwrap();
    oracle::ip(&node.host.network, "link delete tap0").unwrap();
    eventually(LIMIT, || {
        let given_back = uninstall(node).iter().any(|item| item["name"] == "net/ipv4/ip_forward = 0");
        if given_back { Ok(()) } else { Err("the pod's device is still there".into()) }
    })
    .unwrap();
    assert_eq!(forwards(node), "0");
}

/// What the plugins keep between pods goes with them, and not before the last pod.
#[test]
fn the_plugins_leave_nothing_either() {
    let work = work();
    let mut cluster = cluster(&work, &Settings::new(Backend::Vxlan, Store::File).with(Families::Dual));
    let node = &mut cluster.nodes[0];
    let (state, bin) = (node.directory().join("cni"), node.directory().join("opt"));
    let ours = json!({
        "type": "flannel-rs",
        "ipMasq": true,
        "subnetFile": node.directory().join("run/subnet.env"),
        "dataDir": state.join("networks"),
        "capabilities": {"portMappings": true},
    });
    let list = json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [ours, {"type": "firewall"}]});
    node.network = Network::new(list).unwrap().with_state_in(&state.join("cni-plugin"));
    fs::create_dir(&bin).unwrap();
    // The runtime's.
    fs::create_dir(state.join("results")).unwrap();
    let before = stable_picture(node);
    let bin_dir = bin.to_str().unwrap();
    assert!(run_plugin(node, &["install", "--bin-dir", bin_dir]).status.success());
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    let sandbox = Sandbox::start("web", &node.directory().join("log")).unwrap();
    let ports =
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 7007, "protocol": "tcp", "hostIP": "127.0.0.1"}]});
    let web =
        Attachment { capabilities: ports.as_object().unwrap().clone(), ..Attachment::eth0("web", sandbox.path()) };
    node.runtime.add(&node.network, &web).unwrap();
    assert!(node.stop_daemon().unwrap().success());

    let uninstall_all = ["uninstall", "--bin-dir", bin_dir, "--state-dir", state.to_str().unwrap()];
    let only_asked = [&uninstall_all[..], &["--dry-run"]].concat();
    for command in [&only_asked[..], &uninstall_all] {
        let refused = run_plugin(node, command);
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && complaint.contains("cbr0") && complaint.contains("web"), "{complaint}");
    }
    assert!(bin.join("flannel-rs").exists());
    node.runtime.check(&node.network, &web).unwrap();

    node.runtime.del(&node.network, &web).unwrap();
    drop(sandbox);
    // DEL leaves what outlasts its answer to a process of its own.
    eventually(LIMIT, || match oracle::links(&node.host.network)?.iter().any(|name| name.starts_with("veth")) {
        true => Err("the pod's device is still there".into()),
        false => Ok(()),
    })
    .unwrap();
    assert!(run_plugin(node, &only_asked).status.success());
    assert!(bin.join("flannel-rs").exists() && oracle::links(&node.host.network).unwrap().contains("cbr0"));
    let removed = run_plugin(node, &uninstall_all);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    uninstall(node);
    assert_same(&before, &picture(node), "after pods, plugins and daemon");
}

fn run_plugin(node: &Node, args: &[&str]) -> Output {
    let plugin = tools::cni_plugin().unwrap();
    node.host.network.run(|| Command::new(plugin).args(args).output().unwrap()).unwrap()
}
