//! Whole clusters on the real kernel: pods reach each other without NAT, faults heal, restarts lose nothing.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Settings, Store};
use e2e::fabric::Host;
use e2e::pod::Sandbox;
use e2e::probe::{ask, ask_tcp};
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netns::Netns;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// The issue's own bound for every fault that the daemon heals.
const HEAL_LIMIT: Duration = Duration::from_secs(2);
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
    everybody_reaches_everybody(Backend::Vxlan, Store::File);
}

#[test]
fn file_and_host_gw() {
    everybody_reaches_everybody(Backend::HostGw, Store::File);
}

#[test]
fn etcd_and_vxlan() {
    everybody_reaches_everybody(Backend::Vxlan, Store::Etcd);
}

#[test]
fn etcd_and_host_gw() {
    everybody_reaches_everybody(Backend::HostGw, Store::Etcd);
}

fn everybody_reaches_everybody(backend: Backend, store: Store) {
    let work = work();
    let mut cluster = start(&work, &Settings::new(backend, store), 3, 2);
    let subnets: BTreeSet<String> =
        cluster.nodes.iter().map(|node| node.subnet_file().unwrap()["FLANNEL_SUBNET"].clone()).collect();
    assert_eq!(subnets.len(), 3, "{subnets:?}");
    // The last node to come is known to the first one only some moments later.
    for from in cluster.pods() {
        for to in cluster.pods() {
            let answer = eventually(HEAL_LIMIT, || ask(from.sandbox.network(), to.address, SECOND)).unwrap();
            assert_eq!(answer.seen, from.address, "UDP from {} to {}", from.name, to.name);
            let answer = ask_tcp(from.sandbox.network(), to.address, SECOND).unwrap();
            assert_eq!(answer.seen, from.address, "TCP from {} to {}", from.name, to.name);
        }
        for node in &cluster.nodes {
            let answer = ask(&node.host.network, from.address, SECOND);
            assert!(answer.is_ok(), "{} to {}: {answer:?}", node.host.name, from.name);
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
        assert_eq!(ask(pod, outside.address.into(), SECOND).unwrap().seen, node.host.address, "masqueraded UDP");
        assert_eq!(ask_tcp(pod, outside.address.into(), SECOND).unwrap().seen, node.host.address, "masqueraded TCP");
    }
}

/// Breaks one thing after another on the first node, and waits until packets flow and the thing is back.
fn heals(backend: Backend, breakages: &[&str]) {
    let work = work();
    let cluster = start(&work, &Settings::new(backend, Store::File), 2, 1);
    let (pod, target) = pair(&cluster);
    let node = &cluster.nodes[0].host.network;
    eventually(HEAL_LIMIT, || ask(pod, target, SECOND)).unwrap();
    let healthy = eventually(HEAL_LIMIT, || stable_picture(node)).unwrap();
    for breakage in breakages {
        let command = filled_in(breakage, node);
        let start = Instant::now();
        match command.split_once(' ') {
            Some(("ip", args)) => oracle::ip(node, args).unwrap(),
            Some(("bridge", args)) => drop(oracle::bridge(node, args).unwrap()),
            Some(("nft", args)) => drop(oracle::nft(node, args).unwrap()),
            _ => panic!("{command}"),
        }
        let healed = || match picture(node)? {
            now if now == healthy => Ok(()),
            now => Err(format!("{now}\ninstead of\n{healthy}").into()),
        };
        eventually(HEAL_LIMIT, healed).unwrap_or_else(|error| panic!("after `{command}`: {error}"));
        eventually(SECOND, || ask(pod, target, Duration::from_millis(100)))
            .unwrap_or_else(|error| panic!("after `{command}`: {error}"));
        let time = start.elapsed();
        assert!(time < HEAL_LIMIT, "`{command}` healed after {time:?}");
        println!("`{command}` healed after {time:?}");
    }
}

#[test]
fn vxlan_heals() {
    heals(
        Backend::Vxlan,
        &[
            "ip link del flannel.1",
            "ip route del {subnet}",
            "ip neigh del {neighbour} dev flannel.1",
            "bridge fdb del {mac} dev flannel.1 self",
            "ip address flush dev flannel.1",
            "ip link set flannel.1 down",
            "ip link set flannel.1 mtu 1300",
            "nft flush ruleset",
        ],
    );
}

#[test]
fn host_gw_heals() {
    heals(Backend::HostGw, &["ip route del {subnet}", "nft flush ruleset"]);
}

/// The command with the peer's subnet, its tunnel address, and its MAC as the node knows them.
fn filled_in(command: &str, node: &Netns) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let routes = oracle::ip_list(node, "route show").unwrap();
    let is_pods = |route: &&serde_json::Value| route["dst"].as_str().is_some_and(|dst| dst.starts_with("10.42."));
    let route = routes.iter().filter(is_pods).find(|route| route["gateway"].is_string()).unwrap();
    let neighbours = oracle::ip_list(node, "neigh show nud permanent").unwrap();
    let neighbour = neighbours.iter().find(|neighbour| neighbour["dst"] == route["gateway"]);
    let mac = neighbour.map(|neighbour| text(&neighbour["lladdr"])).unwrap_or_default();
    let filled = command.replace("{subnet}", &text(&route["dst"])).replace("{neighbour}", &text(&route["gateway"]));
    filled.replace("{mac}", &mac)
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
fn restarts_lose_no_packet() {
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let work = work();
        let mut cluster = start(&work, &Settings::new(backend, Store::File), 2, 1);
        let (pod, target) = pair(&cluster);
        let stream = Stream::start(pod, target, INTERVAL).unwrap();
        let before = cluster.nodes[0].subnet_file().unwrap();
        for number in 0..4 {
            let node = &mut cluster.nodes[number % 2];
            if number < 2 {
                node.kill_daemon().unwrap();
            } else {
                assert!(node.stop_daemon().unwrap().success(), "SIGTERM must end the daemon with status 0");
            }
            // Nobody is there for a moment.
            std::thread::sleep(Duration::from_millis(100));
            node.start_daemon().unwrap();
            node.wait_ready().unwrap();
            stream.wait_for_answers(50).unwrap();
        }
        assert_eq!(before, cluster.nodes[0].subnet_file().unwrap(), "a restart must keep the subnet");
        let report = stream.stop().unwrap();
        assert!(report.sent > 400, "{report:?}");
        assert_eq!(report.lost, 0, "{backend}: {report:?}");
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
