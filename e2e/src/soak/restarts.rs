//! Daemons that end, and are killed, while pods talk: what the kernel carries must go on as if nothing had happened.

use super::progress::Progress;
use crate::Result;
use crate::cluster::{Backend, Cluster, Families, Settings, Store};
use crate::flood::{self, Flood};
use crate::node::Node;
use serde::Serialize;
use std::path::Path;

/// Datagrams a second while daemons come and go.
pub const PER_SECOND: u32 = 10_000;
/// So many must come before a daemon starts again, and after it is ready: each state is seen by packets.
const BETWEEN: usize = 500;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// backend and family
    pub network: String,
    /// daemons ended with SIGTERM
    pub terminated: u64,
    /// daemons killed
    pub killed: u64,
    /// what became of the packets
    pub packets: flood::Report,
    /// what should not have happened
    pub failures: Vec<String>,
}

/// Ends so many daemons with SIGTERM and kills as many, of either node in turn, under a flood from one node's pod to the
/// other's.
pub fn run(
    (backend, families): (Backend, Families),
    each: u64,
    directory: &Path,
    progress: &mut Progress,
) -> Result<Report> {
    std::fs::create_dir_all(directory)?;
    let mut cluster = Cluster::start(&Settings::new(backend, Store::File).with(families), directory, 2, 1)?;
    let [from, to] = [0, 1].map(|node| cluster.nodes.get(node).and_then(|node: &Node| node.pods.first()));
    let (from, to) = from.zip(to).ok_or("no pods")?;
    let ends = ((from.sandbox.network(), from.address), (to.sandbox.network(), to.address));
    let flood = Flood::start(ends.0, ends.1, PER_SECOND)?;
    let subnets = |cluster: &Cluster| cluster.nodes.iter().map(Node::subnet_file).collect::<Result<Vec<_>>>();
    let before = subnets(&cluster)?;
    let mut failures = Vec::new();
    for number in 0..2 * each {
        progress.show(|| format!("restarts over {backend}, {families:?}: {number} of {}", 2 * each));
        let nodes = cluster.nodes.len().max(1);
        // Each node is ended both ways.
        let node = cluster.nodes.get_mut(usize::try_from(number / 2)? % nodes).ok_or("no node")?;
        if number % 2 == 0 {
            node.kill_daemon()?;
        } else {
            let status = node.stop_daemon()?;
            if !status.success() {
                failures.push(format!("SIGTERM ends the daemon with {status}"));
            }
        }
        flood.wait_for_arrivals(BETWEEN)?;
        node.start_daemon()?;
        node.wait_ready()?;
        flood.wait_for_arrivals(BETWEEN)?;
    }
    let packets = flood.stop()?;
    if packets.lost > 0 || packets.strangers > 0 {
        failures.push(format!("{backend}, {families:?}: {packets:?}"));
    }
    if subnets(&cluster)? != before {
        failures.push(format!("{backend}, {families:?}: a restart has changed a subnet"));
    }
    Ok(Report { network: format!("{backend}, {families:?}"), terminated: each, killed: each, packets, failures })
}
