//! Nodes of Go flannel and of ours in one cluster, on one etcd or one API server: they reach each other, restart, and take each other's place on
//! a node. The Go one is `$GO_FLANNELD`, else `flanneld` in `$PATH`; without it nothing is tested here, and that is said.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::fabric::Host;
use e2e::flows::Flows;
use e2e::node::{Maker, Node};
use e2e::probe::{ask, ask_tcp};
use e2e::stream::{Report, Stream};
use e2e::workdir::WorkDir;
use e2e::{eventually, not_tested, oracle, tools};
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// How soon the others know of a node, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How long nothing may pass while a daemon that carries the packets itself is replaced: Go's runs iptables many times first.
const OUTAGE: Duration = Duration::from_secs(15);
/// Half a dozen streams ask one pod, whose socket keeps some 250 questions while its process waits for its turn.
const INTERVAL: Duration = Duration::from_millis(5);

/// Whether there is a Go flanneld, and what the backend needs of the kernel for it.
fn can_run(backend: Backend) -> bool {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    if tools::go_flanneld().unwrap().is_none() {
        not_tested("nodes of Go flannel beside ours: no `flanneld` in PATH, and GO_FLANNELD names none");
        return false;
    }
    if backend == Backend::WireGuard && kernel::wireguard::WireGuard::open().unwrap().is_none() {
        not_tested("WireGuard beside Go flannel: it needs the kernel's own, and this kernel has none");
        return false;
    }
    true
}

/// Dual stack where Go flannel has it. It makes rules with iptables, or with nft where it is told so: one of either.
fn settings(backend: Backend, store: Store) -> Settings {
    let families = if backend == Backend::Udp { Families::V4 } else { Families::Dual };
    let mut settings = Settings::new(backend, store).with(families);
    settings.network["EnableNFTables"] = json!(backend == Backend::HostGw);
    settings
}

/// Nodes that come one after another, so that each is seen both in a first list and as news; each with a pod.
fn cluster(work: &WorkDir, backend: Backend, store: Store, makers: &[Maker]) -> Cluster {
    let mut cluster = Cluster::new(&settings(backend, store), work.path()).unwrap();
    for maker in makers {
        let node = cluster.add_node().unwrap();
        node.start_daemon_of(*maker).unwrap();
        node.wait_ready().unwrap_or_else(|error| panic!("{maker:?}: {error}"));
        let name = format!("{}-pod", node.host.name);
        node.add_pod(&name).unwrap();
    }
    cluster
}

fn everybody_reaches_everybody(cluster: &Cluster) {
    for from in cluster.pods() {
        for to in cluster.pods() {
            for (source, target) in from.addresses.iter().zip(&to.addresses) {
                let pod = from.sandbox.network();
                let answer = eventually(LIMIT, || ask(pod, *target, Duration::from_millis(300)))
                    .unwrap_or_else(|error| panic!("UDP from {} to {}: {error}", from.name, to.name));
                assert_eq!(answer.seen, *source, "UDP from {} to {}", from.name, to.name);
                assert_eq!(
                    ask_tcp(pod, *target, SECOND).unwrap().seen,
                    *source,
                    "TCP from {} to {}",
                    from.name,
                    to.name
                );
            }
        }
        for (node, target) in cluster.nodes.iter().flat_map(|node| from.addresses.iter().map(move |to| (node, *to))) {
            let answer = eventually(LIMIT, || ask(&node.host.network, target, SECOND));
            assert!(answer.is_ok(), "{} to {} at {target}: {answer:?}", node.host.name, from.name);
        }
    }
}

/// A stream of each family to the pod of node `to` from that of each other node.
fn streams(cluster: &Cluster, to: usize) -> Vec<Stream> {
    let targets = &cluster.nodes[to].pods[0].addresses;
    let others = cluster.nodes.iter().enumerate().filter(|(number, _)| *number != to);
    let pairs = others.flat_map(|(_, node)| targets.iter().map(|target| (node.pods[0].sandbox.network(), *target)));
    pairs.map(|(pod, target)| Stream::start(pod, target, INTERVAL).unwrap()).collect()
}

/// From the node's pod to the world outside, in each family.
fn flows(node: &Node, outside: &Host) -> Vec<Flows> {
    let pod = &node.pods[0];
    let start = |address: &IpAddr| {
        let (world, seen) = (outside.address_like(*address), node.host.address_like(*address));
        // The outside is new: its neighbour discovery gets going in the background.
        eventually(LIMIT, || ask(pod.sandbox.network(), world, SECOND)).unwrap();
        Flows::start(pod.sandbox.network(), world, seen).unwrap()
    };
    pod.addresses.iter().map(start).collect()
}

/// What the others rely on: the subnet, and the tunnel's device with its address, where there is one that stays.
fn identity(node: &Node, backend: Backend) -> String {
    let subnet = node.subnet_file().unwrap();
    let device = |link: &serde_json::Value| {
        let is_ours =
            backend == Backend::Vxlan && link["ifname"].as_str().is_some_and(|name| name.starts_with("flannel"));
        is_ours.then(|| format!("{} {} {}", link["ifname"], link["ifindex"], link["address"]))
    };
    let devices: Vec<_> = oracle::ip_list(&node.host.network, "link show").unwrap().iter().filter_map(device).collect();
    format!("{:?} {:?} {devices:?}", subnet.get("FLANNEL_SUBNET"), subnet.get("FLANNEL_IPV6_SUBNET"))
}

/// What the first node says of itself in Kubernetes.
fn annotations(cluster: &Cluster) -> Option<serde_json::Value> {
    let node = cluster.api.as_ref()?.node("node1")?;
    Some(node["metadata"]["annotations"].clone())
}

fn judge(what: &str, backend: Backend, reports: Vec<Report>) {
    for report in reports {
        println!("{backend}, {what}: {report:?}");
        if backend == Backend::Udp {
            assert!(report.longest_outage < OUTAGE, "{backend}, {what}: {report:?}");
        } else {
            assert_eq!(report.lost, 0, "{backend}, {what}: {report:?}");
        }
    }
}

fn side_by_side(backend: Backend, store: Store) {
    if !can_run(backend) {
        return;
    }
    let work = WorkDir::new().unwrap();
    let mut cluster = cluster(&work, backend, store, &[Maker::Ours, Maker::Go, Maker::Go, Maker::Ours]);
    everybody_reaches_everybody(&cluster);
    for (number, maker) in [(0, Maker::Ours), (1, Maker::Go)] {
        let before = identity(&cluster.nodes[number], backend);
        let streams = streams(&cluster, number);
        for crash in [false, true] {
            let node = &mut cluster.nodes[number];
            if crash {
                node.kill_daemon().unwrap();
            } else {
                assert!(node.stop_daemon().unwrap().success(), "{}", node.daemon_log());
            }
            node.start_daemon_of(maker).unwrap();
            node.wait_ready().unwrap();
            streams.iter().for_each(|stream| stream.wait_for_answers(50).unwrap());
        }
        let reports = streams.into_iter().map(|stream| stream.stop().unwrap()).collect();
        judge(&format!("restarts of {maker:?}"), backend, reports);
        assert_eq!(before, identity(&cluster.nodes[number], backend));
    }
    everybody_reaches_everybody(&cluster);
}

fn in_each_others_place(backend: Backend, store: Store) {
    if !can_run(backend) {
        return;
    }
    let work = WorkDir::new().unwrap();
    let mut cluster = cluster(&work, backend, store, &[Maker::Go, Maker::Ours, Maker::Go]);
    let before = identity(&cluster.nodes[0], backend);
    let outside = cluster.connect("outside").unwrap();
    outside.network.run(|| e2e::probe::serve().unwrap()).unwrap();
    let said = annotations(&cluster);
    let streams = streams(&cluster, 0);
    // `uninstall`, which udp needs in between, takes masquerade away as well.
    let flows = if backend == Backend::Udp { Vec::new() } else { flows(&cluster.nodes[0], &outside) };
    for maker in [Maker::Ours, Maker::Go, Maker::Ours] {
        let node = &mut cluster.nodes[0];
        assert!(node.stop_daemon().unwrap().success());
        // The TUN device that ours keeps for its pods is none that Go flannel could take up: see README.md.
        if backend == Backend::Udp && maker == Maker::Go {
            node.uninstall(&[]).unwrap();
        }
        node.start_daemon_of(maker).unwrap();
        node.wait_ready().unwrap_or_else(|error| panic!("{maker:?}: {error}"));
        assert_eq!(before, identity(node, backend), "under {maker:?}");
        // Chains of iptables, which Debian's keeps in nftables, and what leads to them; or tables.
        let rules = || match oracle::nft(&node.host.network, "list ruleset")? {
            rules if (rules.contains("FLANNEL") || rules.contains("flannel-ipv")) == (maker == Maker::Go) => Ok(()),
            rules => Err(format!("Go flannel's rules under {maker:?}: {rules}").into()),
        };
        eventually(LIMIT, rules).unwrap();
        assert_eq!(said, annotations(&cluster), "both say the same, to the byte");
        streams.iter().for_each(|stream| stream.wait_for_answers(50).unwrap());
    }
    judge("taken over three times", backend, streams.into_iter().map(|stream| stream.stop().unwrap()).collect());
    // Whosever rules there are, nothing goes out to the world without masquerade, nor twice through it.
    for flows in flows {
        assert!(flows.stop().unwrap() > 100);
    }
    // Those who come later find the node as it is now.
    let late = cluster.add_node().unwrap();
    late.start_daemon_of(Maker::Go).unwrap();
    late.wait_ready().unwrap();
    late.add_pod("late").unwrap();
    everybody_reaches_everybody(&cluster);
}

#[test]
fn vxlan_side_by_side() {
    side_by_side(Backend::Vxlan, Store::Etcd);
}

#[test]
fn vxlan_in_each_others_place() {
    in_each_others_place(Backend::Vxlan, Store::Etcd);
}

#[test]
fn host_gw_side_by_side() {
    side_by_side(Backend::HostGw, Store::Etcd);
}

#[test]
fn host_gw_in_each_others_place() {
    in_each_others_place(Backend::HostGw, Store::Etcd);
}

#[test]
fn udp_side_by_side() {
    side_by_side(Backend::Udp, Store::Etcd);
}

#[test]
fn udp_in_each_others_place() {
    in_each_others_place(Backend::Udp, Store::Etcd);
}

#[test]
fn wireguard_side_by_side() {
    side_by_side(Backend::WireGuard, Store::Etcd);
}

#[test]
fn wireguard_in_each_others_place() {
    in_each_others_place(Backend::WireGuard, Store::Etcd);
}

#[test]
fn vxlan_side_by_side_in_kubernetes() {
    side_by_side(Backend::Vxlan, Store::Kube);
}

#[test]
fn vxlan_in_each_others_place_in_kubernetes() {
    in_each_others_place(Backend::Vxlan, Store::Kube);
}

#[test]
fn host_gw_in_each_others_place_in_kubernetes() {
    in_each_others_place(Backend::HostGw, Store::Kube);
}
