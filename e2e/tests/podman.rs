//! A real podman with its CNI backend makes networks and containers: first with Debian's reference plugins, to prove the
//! set-up, then with ours wherever we have the plugin, in one chain with the reference's.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::disallowed_methods, reason = "processes are the point here")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::podman::Podman;
use e2e::probe::{self, ECHO};
use e2e::runner::{Network, Runtime};
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const REFERENCE: &str = "/usr/lib/cni";
const SECOND: Duration = Duration::from_secs(1);
/// The plugins of podman's conflists, each with what podman asks of it.
fn chain() -> [Value; 5] {
    let ipam = json!({"type": "host-local", "subnet": "10.89.0.0/24"});
    [
        json!({"type": "bridge", "ipMasq": true, "isGateway": true, "ipam": ipam}),
        json!({"type": "host-local", "ipam": ipam}),
        json!({"type": "portmap"}),
        json!({"type": "firewall", "backend": ""}),
        json!({"type": "tuning"}),
    ]
}

#[test]
fn reference_plugins() {
    tools::from_package(&format!("{REFERENCE}/portmap"), "containernetworking-plugins").unwrap();
    a_network_with_published_ports(|_| REFERENCE.into());
}

#[test]
fn our_plugins() {
    a_network_with_published_ports(|work| {
        let ours = offered(work);
        // If they could not even say what they have, nothing of ours would be tested.
        assert!(ours.contains("host-local"), "{ours:?}");
        plugins(work, &ours)
    });
}

/// An internal network asks no more of the bridge than it has always been able to do.
#[test]
fn our_bridge_in_an_internal_network() {
    let (work, node) = node();
    let plugins = plugins(&work, &["bridge", "host-local"].map(String::from).into());
    let podman = Podman::new(&node, work.path(), &plugins).unwrap();
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

/// A directory with the plugins of podman's chain: these of ours, the others of the reference.
fn plugins(work: &WorkDir, ours: &BTreeSet<String>) -> PathBuf {
    let directory = work.make("plugins").unwrap();
    for plugin in chain() {
        let name = plugin["type"].as_str().unwrap();
        let reference = || Path::new(REFERENCE).join(name);
        let target = if ours.contains(name) { tools::cni_plugin().unwrap() } else { reference() };
        symlink(target, directory.join(name)).unwrap();
    }
    directory
}

/// Which plugins of the chain our executable has: what it has not, or cannot do, it refuses in STATUS.
fn offered(work: &WorkDir) -> BTreeSet<String> {
    let plugins = work.make("ours").unwrap();
    let runtime = Runtime { plugins, cache: work.make("results").unwrap(), node: Netns::create().unwrap() };
    let offers = |plugin: &Value| {
        let name = plugin["type"].as_str().unwrap();
        symlink(tools::cni_plugin().unwrap(), runtime.plugins.join(name)).unwrap();
        let list = json!({"cniVersion": "1.1.0", "name": "net1", "plugins": [plugin]});
        runtime.status(&Network::new(list).unwrap()).is_ok().then(|| name.to_owned())
    };
    chain().iter().filter_map(offers).collect()
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
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&target, SECOND)?;
        stream.set_read_timeout(Some(SECOND))?;
        stream.write_all(&[ECHO])?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    from.run(ask).unwrap().ok().and_then(|text| text.parse().ok())
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
