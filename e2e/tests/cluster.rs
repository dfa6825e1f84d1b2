//! Whole clusters on the real kernel: pods reach each other without NAT, outages are survived. Faults of a node's
//! network are in `faults.rs`, restarts in `restarts.rs`.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::fabric::Host;
use e2e::flows::Flows;
use e2e::node::Node;
use e2e::pod::Sandbox;
use e2e::probe::{ask, ask_tcp};
use e2e::runner::Attachment;
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netns::Netns;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How soon the last node to come is known to the first one, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(1);

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

fn start(work: &WorkDir, settings: &Settings, nodes: usize, pods: usize) -> Cluster {
    Cluster::start(settings, work.path(), nodes, pods).unwrap_or_else(|error| panic!("{error}"))
}

fn pair(cluster: &Cluster) -> (&Netns, IpAddr) {
    (cluster.nodes[0].pods[0].sandbox.network(), cluster.nodes[1].pods[0].address)
}

#[test]
fn file_and_vxlan() {
    everybody_reaches_everybody(Backend::Vxlan, Store::File, Families::V4);
    everybody_reaches_everybody(Backend::Vxlan, Store::File, Families::V6);
}

#[test]
fn file_and_host_gw() {
    everybody_reaches_everybody(Backend::HostGw, Store::File, Families::Dual);
}

#[test]
fn etcd_and_vxlan() {
    everybody_reaches_everybody(Backend::Vxlan, Store::Etcd, Families::Dual);
}

#[test]
fn etcd_and_host_gw() {
    everybody_reaches_everybody(Backend::HostGw, Store::Etcd, Families::V4);
    everybody_reaches_everybody(Backend::HostGw, Store::Etcd, Families::V6);
}

fn everybody_reaches_everybody(backend: Backend, store: Store, families: Families) {
    let work = work();
    let mut cluster = start(&work, &Settings::new(backend, store).with(families), 3, 2);
    for name in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
        let files = cluster.nodes.iter().map(|node| node.subnet_file().unwrap());
        let subnets: BTreeSet<String> = files.filter_map(|mut file| file.remove(name)).collect();
        let used = families == Families::Dual || (families == Families::V6) == (name == "FLANNEL_IPV6_SUBNET");
        assert_eq!(subnets.len(), if used { 3 } else { 0 }, "{name}: {subnets:?}");
    }
    // The last node to come is known to the first one only some moments later.
    for from in cluster.pods() {
        for to in cluster.pods() {
            assert_eq!(from.addresses.len(), to.addresses.len());
            for (source, target) in from.addresses.iter().zip(&to.addresses) {
                let answer = eventually(READY_LIMIT, || ask(from.sandbox.network(), *target, SECOND)).unwrap();
                assert_eq!(answer.seen, *source, "UDP from {} to {}", from.name, to.name);
                let answer = ask_tcp(from.sandbox.network(), *target, SECOND).unwrap();
                assert_eq!(answer.seen, *source, "TCP from {} to {}", from.name, to.name);
            }
        }
        for (node, target) in cluster.nodes.iter().flat_map(|node| from.addresses.iter().map(move |to| (node, *to))) {
            let answer = ask(&node.host.network, target, SECOND);
            assert!(answer.is_ok(), "{} to {} at {target}: {answer:?}", node.host.name, from.name);
        }
    }
    let outside = cluster.connect("outside").unwrap();
    the_world_sees_the_node(&cluster, &outside);
}

/// A pod that talks to the world does so under its node's address.
fn the_world_sees_the_node(cluster: &Cluster, outside: &Host) {
    std::thread::scope(|scope| {
        // The servers end with the process; a host outside has no other use for one.
        scope.spawn(|| outside.network.run(|| e2e::probe::serve().unwrap()).unwrap()).join().unwrap();
    });
    for node in &cluster.nodes {
        let pod = node.pods[0].sandbox.network();
        for address in &node.pods[0].addresses {
            let (world, seen) = (outside.address_like(*address), node.host.address_like(*address));
            // The outside is new: the kernel joins the groups of neighbour discovery in the background, and who asks before
            // that asks again after a second only.
            let answer = eventually(READY_LIMIT, || ask(pod, world, SECOND)).unwrap();
            assert_eq!(answer.seen, seen, "masqueraded UDP");
            assert_eq!(ask_tcp(pod, world, SECOND).unwrap().seen, seen, "masqueraded TCP");
        }
    }
}

/// All that the daemon programs, in the words of Debian's tools, without what differs between equal states.
fn picture(node: &Netns) -> e2e::Result<String> {
    let mut picture = String::new();
    for link in oracle::ip_list(node, "-details link show")? {
        if link["linkinfo"]["info_kind"] == "vxlan" {
            let data = &link["linkinfo"]["info_data"];
            let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")));
            picture += &format!(
                "{} {} {} up {up} {} {}\n",
                link["ifname"], link["address"], link["mtu"], data["id"], data["local"]
            );
        }
    }
    let mut lines: Vec<String> = Vec::new();
    for address in oracle::ip_list(node, "-4 address show")? {
        let own = address["addr_info"].as_array().into_iter().flatten();
        lines.extend(own.map(|own| format!("{} {}/{}", address["ifname"], own["local"], own["prefixlen"])));
    }
    for args in ["route show", "neigh show nud permanent"] {
        lines.extend(oracle::ip_list(node, args)?.iter().map(ToString::to_string));
    }
    let fdb = oracle::bridge(node, "fdb show")?;
    lines.extend(fdb.lines().filter(|line| line.contains(" dst ")).map(|line| line.trim().to_owned()));
    lines.sort();
    picture += &lines.join("\n");
    // Counters and handles are not listed by default.
    Ok(format!("{picture}\n{}", oracle::nft(node, "list ruleset")?))
}

/// A picture that has peers in it and does not change while one looks twice.
fn stable_picture(node: &Netns) -> e2e::Result<String> {
    let first = picture(node)?;
    std::thread::sleep(Duration::from_millis(50));
    if first == picture(node)? { Ok(first) } else { Err("still changing".into()) }
}

#[test]
fn no_flow_leaves_unmasqueraded_while_the_daemon_restarts() {
    let work = work();
    let mut cluster = start(&work, &Settings::new(Backend::HostGw, Store::File), 1, 1);
    let outside = cluster.connect("outside").unwrap();
    outside.network.run(|| e2e::probe::serve().unwrap()).unwrap();
    let node = &mut cluster.nodes[0];
    let pod = node.pods[0].sandbox.network();
    ask(pod, outside.address.into(), SECOND).unwrap();
    let flows = Flows::start(pod, outside.address.into(), node.host.address.into()).unwrap();
    for crash in [false, true, false, true] {
        if crash {
            node.kill_daemon().unwrap();
        } else {
            assert!(node.stop_daemon().unwrap().success());
        }
        node.start_daemon().unwrap();
        node.wait_ready().unwrap();
    }
    assert!(flows.stop().unwrap() > 100);
}

/// CHECK is content with pods whose daemon is away, or was; what somebody flushed in between the next one brings back.
#[test]
fn pods_pass_check_after_a_restart() {
    let work = work();
    let mut cluster = start(&work, &Settings::new(Backend::HostGw, Store::File), 1, 1);
    let node = &mut cluster.nodes[0];
    let sandbox = Sandbox::start("web", work.path()).unwrap();
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 7007, "protocol": "tcp"}]});
    let capabilities = ports.as_object().unwrap().clone();
    let web = Attachment { capabilities, ..Attachment::eth0("web", sandbox.path()) };
    node.runtime.add(&node.network, &web).unwrap();
    let check = |node: &Node| -> e2e::Result<()> {
        node.runtime.check(&node.network, &node.pods[0].attachment)?;
        node.runtime.check(&node.network, &web)
    };
    for flush in [false, true] {
        check(node).unwrap();
        node.kill_daemon().unwrap();
        check(node).unwrap();
        if flush {
            oracle::nft(&node.host.network, "flush ruleset").unwrap();
            let error = check(node).unwrap_err().to_string();
            assert!(error.contains("8080") && error.contains("cni-plugin-host-ports"), "{error}");
        }
        node.start_daemon().unwrap();
        node.wait_ready().unwrap();
        eventually(Duration::from_secs(10), || check(node)).unwrap();
    }
}

#[test]
fn sigterm_leaves_the_data_path() {
    let work = work();
    let mut cluster = start(&work, &Settings::new(Backend::Vxlan, Store::File), 2, 1);
    let before = stable_picture(&cluster.nodes[0].host.network).unwrap();
    for node in &mut cluster.nodes {
        assert!(node.stop_daemon().unwrap().success());
    }
    assert_eq!(before, picture(&cluster.nodes[0].host.network).unwrap());
    let (pod, target) = pair(&cluster);
    ask(pod, target, SECOND).unwrap();
}

#[test]
fn pods_keep_talking_while_etcd_is_away() {
    let work = work();
    let mut cluster = start(&work, &Settings::new(Backend::Vxlan, Store::Etcd), 2, 1);
    let (pod, target) = pair(&cluster);
    let (pod, target) = (&pod.try_clone().unwrap(), target);
    let stream = Stream::start(pod, target, INTERVAL).unwrap();
    let limit = Duration::from_secs(10);
    let peer = cluster.nodes[1].subnet_file().unwrap().remove("FLANNEL_SUBNET").unwrap().replace(".1/24", ".0-24");
    eventually(limit, || {
        let memory = std::fs::read_to_string(cluster.nodes[0].directory().join("state/last-known.json"))?;
        if memory.contains(&peer) { Ok(()) } else { Err(format!("{peer} is not in memory: {memory}").into()) }
    })
    .unwrap();
    cluster.etcd.as_mut().unwrap().stop().unwrap();
    // A daemon that starts without its store serves the node from memory, heals it, and says so.
    cluster.nodes[0].kill_daemon().unwrap();
    cluster.nodes[0].start_daemon().unwrap();
    eventually(limit, || match cluster.nodes[0].health("/readyz")? {
        (200, body) if body.contains("etcd") && body.contains("memory") => Ok(()),
        (status, body) => Err(format!("/readyz does not say what it does without the store: {status} {body}").into()),
    })
    .unwrap();
    let report = stream.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");

    // After a reboot nothing is left but the disk: neither devices and routes, nor the files in /run.
    let before = cluster.nodes[0].subnet_file().unwrap();
    cluster.nodes[0].kill_daemon().unwrap();
    oracle::ip(&cluster.nodes[0].host.network, "link delete flannel.1").unwrap();
    std::fs::remove_file(cluster.nodes[0].directory().join("run/subnet.env")).unwrap();
    cluster.nodes[0].start_daemon().unwrap();
    cluster.nodes[0].wait_ready().unwrap();
    assert_eq!(before, cluster.nodes[0].subnet_file().unwrap());
    eventually(limit, || ask(pod, target, Duration::from_millis(200))).unwrap();

    // A new node has nothing to remember.
    cluster.add_node().unwrap().start_daemon().unwrap();
    eventually(limit, || match cluster.nodes[2].health("/readyz")? {
        (200, body) => panic!("ready without a store: {body}"),
        (_, body) if body.contains("etcd") => Ok(()),
        (status, body) => Err(format!("/readyz does not name the store: {status} {body}").into()),
    })
    .unwrap();

    let stream = Stream::start(pod, target, INTERVAL).unwrap();
    cluster.etcd.as_mut().unwrap().resume().unwrap();
    eventually(limit, || match cluster.nodes[0].health("/readyz")? {
        (200, body) if !body.contains("memory") => Ok(()),
        (status, body) => Err(format!("the lease is not confirmed: {status} {body}").into()),
    })
    .unwrap();
    assert_eq!(before, cluster.nodes[0].subnet_file().unwrap());
    // The new node is seen by the one that never restarted: its watch is alive again.
    cluster.nodes[2].wait_ready().unwrap();
    let newcomer = cluster.nodes[2].add_pod("newcomer").unwrap().address;
    let old = cluster.nodes[1].pods[0].sandbox.network();
    eventually(Duration::from_secs(10), || ask(old, newcomer, Duration::from_millis(200))).unwrap();
    let report = stream.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn a_frozen_etcd_is_survived() {
    let work = work();
    let mut cluster = start(&work, &Settings::new(Backend::HostGw, Store::Etcd), 2, 1);
    let (pod, target) = pair(&cluster);
    let stream = Stream::start(pod, target, INTERVAL).unwrap();
    let etcd = cluster.etcd.as_mut().unwrap();
    etcd.signal(Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    etcd.signal(Signal::SIGCONT).unwrap();
    for node in &mut cluster.nodes {
        node.wait_ready().unwrap();
    }
    let report = stream.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
}

/// Two subnets for three nodes: whoever comes last gets none, says so, and harms nobody.
#[test]
fn two_daemons_race_for_the_last_subnet() {
    for store in [Store::File, Store::Etcd] {
        let work = work();
        let network =
            json!({"Network": "10.42.0.0/16", "SubnetLen": 24, "SubnetMin": "10.42.1.0", "SubnetMax": "10.42.2.0"});
        let settings = Settings { network, ..Settings::new(Backend::HostGw, store) };
        let mut cluster = start(&work, &settings, 1, 1);
        for _ in 0..2 {
            cluster.add_node().unwrap().start_daemon().unwrap();
        }
        let subnets = || -> BTreeSet<String> {
            let files = cluster.nodes.iter().filter_map(|node| node.subnet_file().ok());
            files.filter_map(|mut file| file.remove("FLANNEL_SUBNET")).collect()
        };
        eventually(Duration::from_secs(10), || match subnets().len() {
            2 => Ok(()),
            number => Err(format!("{number} subnets leased").into()),
        })
        .unwrap();
        // Time for the loser to do something wrong.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(subnets().len(), 2);
        let winners = cluster.nodes.iter().filter(|node| node.subnet_file().is_ok()).count();
        assert_eq!(winners, 2);
        let loser = cluster.nodes.iter().find(|node| node.subnet_file().is_err()).unwrap();
        let log = loser.daemon_log();
        assert!(log.to_lowercase().contains("subnet"), "the loser does not say what it lacks: {log}");
        assert!(!loser.health("/readyz").is_ok_and(|(status, _)| status == 200));
    }
}

/// The probes and the stream can fail: they are tried on wires that are cut.
#[test]
fn the_harness_notices_losses() {
    let work = work();
    let fabric = e2e::fabric::Fabric::new().unwrap();
    let host = fabric.connect("host", 10).unwrap();
    let sandbox = Sandbox::start("pod", work.path()).unwrap();
    assert!(ask(sandbox.network(), host.address.into(), Duration::from_millis(50)).is_err());
    host.network.run(|| e2e::probe::serve().unwrap()).unwrap();
    let answer = ask(fabric.network(), host.address.into(), SECOND).unwrap();
    assert_eq!(answer.seen, IpAddr::from(e2e::fabric::GATEWAY));
    let stream = Stream::start(fabric.network(), host.address.into(), INTERVAL).unwrap();
    stream.wait_for_answers(10).unwrap();
    oracle::ip(&host.network, "link set eth0 down").unwrap();
    // Twice what waits in the kernel for the neighbour, which is delivered once the wire is back (unres_qlen_bytes).
    stream.wait_for_requests(600).unwrap();
    oracle::ip(&host.network, "link set eth0 up").unwrap();
    stream.wait_for_answers(10).unwrap();
    let report = stream.stop().unwrap();
    assert!(report.lost >= 50 && report.lost < report.sent, "{report:?}");
    assert!(report.longest_outage > Duration::from_millis(80), "{report:?}");
}
