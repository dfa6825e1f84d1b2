//! The daemon: how soon it is ready, how soon a peer is reachable, how it follows a cluster that grows, and what memory and
//! processor time it takes.

use super::footprint::{self, Memory};
use super::{Figure, Sample, Wishes};
use crate::Result;
use crate::cluster::{Backend, Cluster, Families, Settings, Store};
use crate::fabric::GATEWAY;
use crate::node::Node;
use kernel::netlink::Netlink;
use kernel::wireguard::{PublicKey, WireGuard};
use kernel::{Mac, ROUTE_PROTOCOL};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a route to a new peer may take before the measurement counts as failed.
const ROUTE_LIMIT: Duration = Duration::from_secs(10);
/// The first half of the addresses is for the peers that the benchmark invents.
const NETWORK: [u8; 4] = [10, 0, 0, 0];
/// The same of IPv6: the upper half of the subnets of fd42::/48.
const NETWORK_V6: [u8; 16] = [0xfd, 0x42, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for peers in [2, 1000, 5000] {
        let directory = directory.join(peers.to_string());
        fs::create_dir_all(&directory)?;
        // Peers get the lower subnets, our node one of the upper.
        let network = json!({"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.128.0.0"});
        let settings = Settings { network, ..Settings::new(Backend::Vxlan, Store::File) };
        let mut cluster = Cluster::new(&settings, &directory)?;
        let leases = directory.join("store/subnets");
        fs::create_dir_all(&leases)?;
        for number in 1..=peers {
            write_lease(&leases, number)?;
        }
        let node = cluster.add_node()?;
        let mut first = Sample::default();
        first.measure(|| start(node))?;
        wait_for_route(node, peers)?;
        let mut again = Sample::default();
        for _ in 0..wishes.times(10) {
            node.kill_daemon()?;
            again.measure(|| start(node))?;
        }
        let mut route = Sample::default();
        let events = u32::try_from(wishes.times(200))?;
        for number in peers + 1..=peers + events {
            write_lease(&leases, number)?;
            route.add(wait_for_route(node, number)?);
            // Apart, as nodes come and go.
            std::thread::sleep(Duration::from_millis(20));
        }
        let lag = churn(node, &leases, peers + events + 1, u32::try_from(wishes.times(1000))?)?;
        let named = |what: &str| format!("daemon with {peers} peers: {what}");
        let followed = footprint::memory(node, Memory::Now)?;
        let idle = footprint::idle(wishes, node, named)?;
        figures.push(Figure::time(named("first start to ready"), first.median()).note("vxlan, file store, --ip-masq"));
        figures.push(Figure::time(named("restart to ready, p50"), again.median()));
        figures.push(Figure::time(named("peer's lease to route in the kernel, p50"), route.median()));
        let p99 = Figure::time(named("peer's lease to route in the kernel, p99"), route.percentile(99));
        figures.push(p99.below(5.0));
        let lag = Figure::time(named("behind 100 new nodes a second, worst"), lag.percentile(100));
        figures.push(lag.below(1000.0));
        figures.push(footprint::megabytes(named("resident memory, right after that"), followed));
        figures.extend(idle);
    }
    for families in [Families::V4, Families::Dual] {
        let directory = directory.join(format!("{families:?}"));
        fs::create_dir_all(&directory)?;
        figures.extend(others(wishes, &directory, families)?);
    }
    let directory = directory.join("wireguard");
    fs::create_dir_all(&directory)?;
    figures.extend(wireguard(wishes, &directory)?);
    let directory = directory.with_file_name("kubernetes");
    fs::create_dir_all(&directory)?;
    figures.extend(kubernetes(wishes, &directory)?);
    Ok(figures)
}

/// What many peers take otherwise: with host-gw, and with vxlan and both families.
fn others(wishes: &Wishes, directory: &Path, families: Families) -> Result<Vec<Figure>> {
    const PEERS: u32 = 5000;
    let (backend, name) = match families {
        Families::Dual => (Backend::Vxlan, "both families"),
        Families::V4 | Families::V6 => (Backend::HostGw, "host-gw"),
    };
    let mut settings = Settings::new(backend, Store::File).with(families);
    settings.network["Network"] = json!("10.0.0.0/8");
    settings.network["SubnetMin"] = json!("10.128.0.0");
    let mut cluster = Cluster::new(&settings, directory)?;
    let leases = directory.join("store/subnets");
    fs::create_dir_all(&leases)?;
    for number in 1..=PEERS {
        let v4 = subnet(number);
        let v6 = Ipv6Addr::from(u128::from_be_bytes(NETWORK_V6) + (u128::from(number) << 64));
        let data = |subnet: IpAddr| json!({"VNI": 1, "VtepMAC": Mac::derive(&subnet.to_string()).to_string()});
        let (key, lease) = match backend {
            Backend::Vxlan => (
                format!("{v4}-24&{v6}-64"),
                json!({
                    "PublicIP": outer(number), "PublicIPv6": outer(number).to_ipv6_compatible(), "BackendType": "vxlan",
                    "BackendData": data(v4.into()), "BackendV6Data": data(v6.into()),
                }),
            ),
            // Neighbours of the node on its own network, each with many subnets.
            _ => (
                format!("{v4}-24"),
                json!({"PublicIP": Ipv4Addr::from(GATEWAY.to_bits() + 100 + number % 100), "BackendType": "host-gw"}),
            ),
        };
        put(&leases, &key, &lease)?;
    }
    let node = cluster.add_node()?;
    let mut first = Sample::default();
    first.measure(|| start(node))?;
    let named = |what: &str| format!("daemon with {PEERS} peers, {name}: {what}");
    let mut figures = vec![Figure::time(named("first start to ready"), first.median())];
    figures.extend(footprint::idle(wishes, node, named)?);
    let routes =
        Netlink::open_in(&node.host.network)?.routes()?.into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
    match (routes.count(), if families == Families::Dual { 2 } else { 1 }) {
        (found, each) if found == PEERS as usize * each => Ok(figures),
        (found, _) => Err(format!("{found} routes to {PEERS} peers\n{}", node.daemon_log()).into()),
    }
}

/// With many nodes in Kubernetes, whose objects are large and change all the time in what is of no interest.
fn kubernetes(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    const PEERS: u32 = 5000;
    let network = json!({"Network": "10.0.0.0/8", "SubnetLen": 24});
    let mut cluster = Cluster::new(&Settings { network, ..Settings::new(Backend::Vxlan, Store::Kube) }, directory)?;
    let api = cluster.api()?;
    for number in 1..=PEERS {
        let data = json!({"VNI": 1, "VtepMAC": Mac::derive(&subnet(number).to_string()).to_string()});
        let annotations = json!({
            "flannel.alpha.coreos.com/backend-data": data.to_string(),
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": outer(number),
        });
        api.put_annotated_node(&format!("peer-{number}"), &[&format!("{}/24", subnet(number))], &annotations);
    }
    let mut first = Sample::default();
    let node = cluster.add_node()?;
    first.measure(|| start(node))?;
    wait_for_route(node, PEERS)?;
    let resident = footprint::memory(node, Memory::Now)?;
    let (node, api) = (&cluster.nodes[0], cluster.api()?);
    let beats = u32::try_from(wishes.times(5000))?;
    let before = footprint::processor(node)?;
    (0..beats).for_each(|number| api.heartbeat(&format!("peer-{}", number % PEERS + 1)));
    // What comes after the heartbeats has been seen with them.
    let last = PEERS + 1;
    let annotations = api.node("peer-1").ok_or("no node")?["metadata"]["annotations"].clone();
    api.put_annotated_node(&format!("peer-{last}"), &[&format!("{}/24", subnet(last))], &annotations);
    wait_for_route(node, last)?;
    let each = (footprint::processor(node)? - before) / f64::from(beats);
    let named = |what: &str| format!("daemon with {PEERS} nodes in Kubernetes: {what}");
    let resident = footprint::megabytes(named("resident memory"), resident);
    let idle = footprint::idle(wishes, node, named)?;
    let beat = Figure { unit: "µs", ..Figure::time(named("processor time for a heartbeat"), each * 1e6) };
    // Each kubelet tells of itself at least every five minutes (nodeStatusReportFrequency).
    let share = each * f64::from(PEERS) / 300.0 * 100.0;
    let mut figures = vec![
        Figure::time(named("first start to ready"), first.median()).note("vxlan"),
        resident,
        beat.note(format!("{share:.3} % of a core where each of them comes every 5 minutes")),
    ];
    figures.extend(idle);
    Ok(figures)
}

/// With tunnels to many peers, which the daemon keeps itself where the kernel has no WireGuard: while nothing is sent, and
/// while something waits for each of them and none is there to answer, so that it goes on offering handshakes, each every 5 s:
/// the most that it ever has to do for them.
fn wireguard(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    const PEERS: u32 = 5000;
    let network = json!({"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.128.0.0"});
    let mut cluster = Cluster::new(&Settings { network, ..Settings::new(Backend::WireGuard, Store::File) }, directory)?;
    let leases = directory.join("store/subnets");
    fs::create_dir_all(&leases)?;
    for number in 1..=PEERS {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let data = json!({"PublicKey": PublicKey(key).to_string(), "Port": 51820});
        put(&leases, &format!("{}-24", subnet(number)), &lease(number, "wireguard", &data))?;
    }
    let node = cluster.add_node()?;
    let mut first = Sample::default();
    first.measure(|| start(node))?;
    let mut netlink = Netlink::open_in(&node.host.network)?;
    let device = netlink.link("flannel-wg")?.map(|link| link.index);
    if device.is_none() || netlink.lookup(subnet(PEERS).into())?.dev != device {
        return Err(format!("ready, and no route to the last peer\n{}", node.daemon_log()).into());
    }
    let by = if WireGuard::open()?.is_some() { "in the kernel" } else { "in user space" };
    let named = |what: &str| format!("daemon with {PEERS} peers, wireguard {by}: {what}");
    let idle = footprint::idle(wishes, node, named)?;
    let caller = node.host.network.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    for number in 1..=PEERS {
        caller.send_to(&[0], (subnet(number), 4000))?;
        // The device's queue has room for 500.
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let busy = footprint::busy(node, Duration::from_secs(u64::try_from(wishes.times(20))?))?;
    let resident = footprint::memory(node, Memory::Now)?;
    let calling = format!("{busy:.2} % of a core, {resident:.2} MB while it calls all and none answers");
    let mut figures = vec![Figure::time(named("first start to ready"), first.median()).note(calling)];
    figures.extend(idle);
    Ok(figures)
}

fn start(node: &mut Node) -> Result<()> {
    node.start_daemon()?;
    node.wait_ready()
}

fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes(NETWORK) + (number << 8))
}

/// The underlay address of another node.
fn outer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes([192, 168, 64, 0]) + number)
}

/// A VXLAN lease of another node.
fn write_lease(leases: &Path, number: u32) -> Result<()> {
    let data = json!({"VNI": 1, "VtepMAC": Mac::derive(&subnet(number).to_string()).to_string()});
    put(leases, &format!("{}-24", subnet(number)), &lease(number, "vxlan", &data))
}

/// A lease of another node as flannel writes it.
fn lease(number: u32, backend: &str, data: &Value) -> Value {
    json!({"PublicIP": outer(number), "PublicIPv6": null, "BackendType": backend, "BackendData": data})
}

/// Puts a lease in place by a rename.
fn put(leases: &Path, key: &str, lease: &Value) -> Result<()> {
    let temporary = leases.join("../.bench");
    fs::write(&temporary, lease.to_string())?;
    Ok(fs::rename(temporary, leases.join(key))?)
}

/// Adds nodes, one every 10 ms, and looks without a pause how soon the routes to them are there.
fn churn(node: &Node, leases: &Path, first: u32, number: u32) -> Result<Sample> {
    let mut netlink = Netlink::open_in(&node.host.network)?;
    let (mut lag, mut written, mut seen) = (Sample::default(), Vec::new(), 0);
    let start = Instant::now();
    for next in first..first + number {
        while start.elapsed() < Duration::from_millis(10) * (next - first) {
            seen = follow(&mut netlink, first, &written, seen, &mut lag)?;
        }
        write_lease(leases, next)?;
        written.push(Instant::now());
    }
    while seen < written.len() {
        seen = follow(&mut netlink, first, &written, seen, &mut lag)?;
        if written.last().is_some_and(|last| last.elapsed() > ROUTE_LIMIT) {
            return Err(format!("the daemon has followed {seen} of {number} new nodes\n{}", node.daemon_log()).into());
        }
    }
    Ok(lag)
}

/// Takes note of the next route, if it is there; how many are, then.
fn follow(netlink: &mut Netlink, first: u32, written: &[Instant], seen: usize, lag: &mut Sample) -> Result<usize> {
    let subnet = subnet(first + u32::try_from(seen)?);
    match written.get(seen) {
        Some(written) if netlink.lookup(subnet.into())?.via == Some(subnet.into()) => {
            lag.add(written.elapsed());
            Ok(seen + 1)
        }
        _ => Ok(seen),
    }
}

/// Looks without a pause until the route is there; the time since the call.
fn wait_for_route(node: &Node, number: u32) -> Result<Duration> {
    let subnet = subnet(number);
    let mut netlink = Netlink::open_in(&node.host.network)?;
    let start = Instant::now();
    // Asking for one destination costs microseconds, whatever the number of routes.
    while netlink.lookup(subnet.into())?.via != Some(subnet.into()) {
        if start.elapsed() > ROUTE_LIMIT {
            return Err(format!("no route to {subnet} within {ROUTE_LIMIT:?}\n{}", node.daemon_log()).into());
        }
        std::thread::yield_now();
    }
    Ok(start.elapsed())
}
