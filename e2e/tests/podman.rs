//! A real podman with its CNI backend makes networks and containers: first with Debian's reference plugins, to prove the
//! set-up, then with ours, on a machine that has no others.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::podman::Podman;
use e2e::probe;
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use kernel::netns::Netns;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

const REFERENCE: &str = "/usr/lib/cni";
const SECOND: Duration = Duration::from_secs(1);
#[test]
fn reference_plugins() {
    tools::from_package(&format!("{REFERENCE}/portmap"), "containernetworking-plugins").unwrap();
    a_network_with_published_ports(|_| REFERENCE.into());
}

#[test]
fn our_plugins() {
    a_network_with_published_ports(ours);
}

/// An internal network asks no more of the bridge than it has always been able to do.
#[test]
fn our_bridge_in_an_internal_network() {
    let (work, node) = node();
    let podman = Podman::new(&node, work.path(), &ours(&work)).unwrap();
    podman.run(&["network", "create", "--internal", "net1"]).unwrap();
    for name in ["one", "two"] {
        podman.start(name, &["--network", "net1"]).unwrap();
    }
    let [one, two] = ["one", "two"].map(|name| address(&podman, name));
    assert_ne!(one, two);
    assert_answers(&podman.network_of("one").unwrap(), two);
    assert_answers(&podman.network_of("two").unwrap(), one);
    podman.run(&["restart", "--time", "0", "one"]).unwrap();
    assert_answers(&podman.network_of("two").unwrap(), address(&podman, "one"));
    podman.run(&["rm", "--force", "--time", "0", "one", "two"]).unwrap();
    assert_nothing_is_left(&podman, &node);
    podman.run(&["network", "rm", "net1"]).unwrap();
}

fn a_network_with_published_ports(plugins: impl FnOnce(&WorkDir) -> PathBuf) {
    let (work, node) = node();
    let outside = neighbour(&node);
    let podman = Podman::new(&node, work.path(), &plugins(&work)).unwrap();
    podman.run(&["network", "create", "net1"]).unwrap();
    let listed = podman.run(&["network", "inspect", "net1"]).unwrap();
    assert!(listed.contains("\"bridge\"") && listed.contains("10.89.0.0/24"), "{listed}");
    // What podman is going to execute, by its own conflist.
    let conflist = fs::read_to_string(work.path().join("net.d/net1.conflist")).unwrap();
    for plugin in ["bridge", "host-local", "portmap", "firewall", "tuning"] {
        assert!(conflist.contains(&format!("\"{plugin}\"")), "{plugin}: {conflist}");
    }

    podman.start("one", &["--network", "net1", "--publish", "8080:7007"]).unwrap();
    podman.start("two", &["--network", "net1"]).unwrap();
    let [one, two] = ["one", "two"].map(|name| address(&podman, name));
    assert_ne!(one, two);
    let [network_of_one, network_of_two] = ["one", "two"].map(|name| podman.network_of(name).unwrap());
    assert_answers(&network_of_one, two);
    assert_answers(&network_of_two, one);
    assert_answers(&node, one);

    // The published port: from outside with the client's own address, from the node itself, from the other container.
    network_of_one.run(probe::serve).unwrap().unwrap();
    let published = |host: &str| SocketAddr::new(host.parse().unwrap(), 8080);
    assert_eq!(seen_by(&outside, published("192.0.2.1")), Some("192.0.2.2".parse().unwrap()));
    assert!(seen_by(&node, published("192.0.2.1")).is_some());
    assert!(seen_by(&network_of_two, published("192.0.2.1")).is_some());

    podman.run(&["restart", "--time", "0", "one"]).unwrap();
    assert_answers(&network_of_two, address(&podman, "one"));
    podman.network_of("one").unwrap().run(probe::serve).unwrap().unwrap();
    assert!(seen_by(&outside, published("192.0.2.1")).is_some(), "the port is published again after a restart");

    podman.run(&["rm", "--force", "--time", "0", "one", "two"]).unwrap();
    assert_eq!(seen_by(&outside, published("192.0.2.1")), None, "the port is closed with its container");
    assert_nothing_is_left(&podman, &node);
    podman.run(&["network", "rm", "net1"]).unwrap();
}

fn node() -> (WorkDir, Netns) {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let node = Netns::create().expect("the tests need root");
    oracle::ip(&node, "link set lo up").unwrap();
    (WorkDir::new().unwrap(), node)
}

/// A host beside the node, on a network that is not the containers'.
fn neighbour(node: &Netns) -> Netns {
    let outside = Netns::create().unwrap();
    let path = outside.path();
    oracle::ip(node, &format!("link add uplink type veth peer name uplink netns {}", path.display())).unwrap();
    for (network, address) in [(node, "192.0.2.1/24"), (&outside, "192.0.2.2/24")] {
        oracle::ip(network, &format!("address add {address} dev uplink")).unwrap();
        oracle::ip(network, "link set uplink up").unwrap();
    }
    outside
}

fn ours(work: &WorkDir) -> PathBuf {
    tools::plugin_directory(&work.path().join("plugins")).unwrap()
}

fn address(podman: &Podman, container: &str) -> IpAddr {
    podman.inspect(container, ".NetworkSettings.Networks.net1.IPAddress").unwrap().parse().unwrap()
}

/// Nothing listens in a pause container: its kernel's refusal is the answer.
fn assert_answers(from: &Netns, address: IpAddr) {
    let refused = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, 80), SECOND)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}: {refused}");
}

/// The address under which the server at `target` sees a client in `from`; none without an answer.
fn seen_by(from: &Netns, target: SocketAddr) -> Option<IpAddr> {
    probe::ask_tcp_at(from, target, SECOND).ok().map(|answer| answer.seen)
}

/// Only what the network's containers share is left: its bridge. All addresses are free.
fn assert_nothing_is_left(podman: &Podman, node: &Netns) {
    let links = oracle::links(node).unwrap();
    let shared: BTreeSet<String> = ["lo", "uplink", "cni-podman1"].map(String::from).into();
    assert!(links.is_subset(&shared), "{links:?}");
    let ledger = podman.file("/var/lib/cni/networks/net1");
    let reserved = |name: &String| name.parse::<IpAddr>().is_ok();
    let names = fs::read_dir(ledger).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(reserved).collect::<Vec<_>>(), Vec::<String>::new());
}
