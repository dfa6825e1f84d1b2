//! The daemon: how soon it is ready, how soon a peer is reachable, how much memory it takes.

use super::{Figure, Sample, Wishes};
use crate::Result;
use crate::cluster::{Backend, Cluster, Settings, Store};
use crate::node::Node;
use kernel::Mac;
use kernel::netlink::Netlink;
use serde_json::json;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a route to a new peer may take before the measurement counts as failed.
const ROUTE_LIMIT: Duration = Duration::from_secs(10);
/// The first half of the addresses is for the peers that the benchmark invents.
const NETWORK: [u8; 4] = [10, 0, 0, 0];

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
        for number in peers + 1..=peers + u32::try_from(wishes.times(20))? {
            write_lease(&leases, number)?;
            route.add(wait_for_route(node, number)?);
        }
        let named = |what: &str| format!("daemon with {peers} peers: {what}");
        figures.push(Figure::time(named("first start to ready"), first.median()).note("vxlan, file store, --ip-masq"));
        figures.push(Figure::time(named("restart to ready, p50"), again.median()));
        figures.push(Figure::time(named("peer's lease to route in the kernel, p50"), route.median()));
        figures.push(Figure { unit: "MiB", ..Figure::time(named("resident memory"), memory(node)?) });
    }
    Ok(figures)
}

fn start(node: &mut Node) -> Result<()> {
    node.start_daemon()?;
    node.wait_ready()
}

fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes(NETWORK) + (number << 8))
}

/// A lease of another node as flannel writes it, put in place by a rename.
fn write_lease(leases: &Path, number: u32) -> Result<()> {
    let subnet = subnet(number);
    let outer = Ipv4Addr::from(u32::from_be_bytes([192, 168, 64, 0]) + number);
    let lease = json!({
        "PublicIP": outer, "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": Mac::derive(&subnet.to_string()).to_string()},
    });
    let temporary = leases.join("../.bench");
    fs::write(&temporary, lease.to_string())?;
    Ok(fs::rename(temporary, leases.join(format!("{subnet}-24")))?)
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

/// Resident memory of the daemon in MiB.
fn memory(node: &Node) -> Result<f64> {
    let pid = node.daemon_pid().ok_or("no daemon runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
