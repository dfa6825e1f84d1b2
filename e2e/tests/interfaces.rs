//! Nodes whose families use different interfaces: IPv4 goes over one wire, IPv6 over another, and neither minds what befalls
//! the other's.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::probe::{ask, ask_tcp};
use e2e::stream::Stream;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use kernel::netlink::{Netlink, VethSpec};
use kernel::netns::Netns;
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// Generous for a busy machine; a handshake of WireGuard that gets lost is repeated after 5 s.
const LIMIT: Duration = Duration::from_secs(20);
const WIRE: &str = "eth1";

/// Two nodes with IPv4 on the fabric, and IPv6 on a wire of their own.
fn cluster(work: &WorkDir, backend: Backend) -> Cluster {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let mut settings = Settings::new(backend, Store::Etcd).with(Families::Dual);
    settings.flags.extend(["--iface".into(), WIRE.into()]);
    let mut cluster = Cluster::new(&settings, work.path()).unwrap();
    for _ in 0..2 {
        cluster.add_node().unwrap();
    }
    let networks = [0, 1].map(|number: usize| &cluster.nodes[number].host.network);
    let wire = VethSpec::new(WIRE, WIRE, networks[1]);
    Netlink::open_in(networks[0]).unwrap().create_veth(&wire).unwrap();
    for node in networks {
        oracle::ip(node, "-6 address flush dev eth0 scope global").unwrap();
        // The product's pairs need no address of their own.
        oracle::ip(node, &format!("link set {WIRE} addrgenmode eui64")).unwrap();
        oracle::ip(node, &format!("link set {WIRE} up")).unwrap();
    }
    for (number, node) in (1..).zip(networks) {
        give_address(node, number);
    }
    for node in &mut cluster.nodes {
        node.start_daemon().unwrap();
        node.wait_ready().unwrap_or_else(|error| panic!("{error}"));
        let name = format!("{}-pod", node.host.name);
        node.add_pod(&name).unwrap();
    }
    cluster
}

/// Once the kernel has made the link-local one, without which it looks for no neighbour of packets that it forwards.
fn give_address(node: &Netns, number: usize) {
    eventually(LIMIT, || match oracle::ip_list(node, &format!("-6 address show dev {WIRE} scope link"))?.is_empty() {
        true => Err("no link-local address".into()),
        false => Ok(()),
    })
    .unwrap();
    oracle::ip(node, &format!("address add 2001:db8:51::{number}/64 dev {WIRE} nodad")).unwrap();
}

fn each_family_goes_its_own_way(backend: Backend) {
    let work = WorkDir::new().unwrap();
    let cluster = cluster(&work, backend);
    let (from, to) = (&cluster.nodes[0].pods[0], &cluster.nodes[1].pods[0]);
    let (pod, node) = (from.sandbox.network(), &cluster.nodes[0].host.network);
    let reach = |target: IpAddr, source: IpAddr| {
        let answer = eventually(LIMIT, || ask(pod, target, Duration::from_millis(200))).unwrap();
        assert_eq!(answer.seen, source, "{backend}");
        assert_eq!(ask_tcp(pod, target, SECOND).unwrap().seen, source, "{backend}");
    };
    for (source, target) in from.addresses.iter().zip(&to.addresses) {
        reach(*target, *source);
    }
    let of_family = |v6: bool| {
        let mut pairs = from.addresses.iter().copied().zip(to.addresses.iter().copied());
        pairs.find(|(source, _)| source.is_ipv6() == v6).unwrap()
    };
    let sent = |interface: &str| -> u64 {
        let links = oracle::ip_list(node, &format!("-statistics link show dev {interface}")).unwrap();
        links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    };
    for v6 in [false, true] {
        let before = [sent("eth0"), sent(WIRE)];
        let stream = Stream::start(pod, of_family(v6).1, Duration::from_micros(500)).unwrap();
        stream.wait_for_answers(500).unwrap();
        stream.stop().unwrap();
        let [first, second] = [sent("eth0") - before[0], sent(WIRE) - before[1]];
        let (used, idle) = if v6 { (second, first) } else { (first, second) };
        // The lease store and its watch are on the first one.
        assert!(
            used > 500 * 40 && idle < used / 2,
            "{backend}, IPv6 {v6}: {used} bytes over its own, {idle} over the other"
        );
    }

    let ((_, v4), (source, v6)) = (of_family(false), of_family(true));
    let stream = Stream::start(pod, v4, Duration::from_millis(1)).unwrap();
    oracle::ip(node, &format!("link set {WIRE} down")).unwrap();
    stream.wait_for_answers(100).unwrap();
    ask(pod, v6, Duration::from_millis(100)).unwrap_err();
    oracle::ip(node, &format!("link set {WIRE} up")).unwrap();
    give_address(node, 1);
    reach(v6, source);
    let report = stream.stop().unwrap();
    // Not a packet where the kernel forwards; where the daemon does, it has other things to do for a moment.
    let kernel = matches!(backend, Backend::Vxlan | Backend::HostGw);
    assert!(report.lost == 0 || !kernel && report.longest_outage < SECOND, "{backend}: {report:?}");
}

#[test]
fn vxlan() {
    each_family_goes_its_own_way(Backend::Vxlan);
}

#[test]
fn host_gw() {
    each_family_goes_its_own_way(Backend::HostGw);
}

#[test]
fn udp() {
    each_family_goes_its_own_way(Backend::Udp);
}

#[test]
fn wireguard() {
    each_family_goes_its_own_way(Backend::WireGuard);
}
