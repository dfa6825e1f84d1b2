//! The report as people read it.

use super::Report;
use crate::cluster::Cluster;
use crate::table::Table;
use nix::unistd::Uid;
use std::collections::BTreeSet;
use std::fmt::Write;

impl Report {
    /// Headings and tables; `colours` for a terminal.
    pub(super) fn text(&self, colours: bool) -> String {
        let mut text = String::new();
        let mut section = |title: &str, body: &str| {
            let (on, off) = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            text.push_str(&format!("\n{on}{title}{off}\n{body}"));
        };
        section("Pods", &self.pod_table().to_string());
        section("Round-trip times in ms, and the client's address as the servers saw it", &self.matrix().to_string());
        if let Some(result) = &self.throughput {
            let speed = result.bits_per_second / 1e9;
            section("Throughput", &format!("  {} -> {}   {speed:.2} Gbit/s\n", result.from, result.to));
        }
        if !self.faults.is_empty() {
            section("Faults under a stream of 1000 packets per second", &self.fault_table().to_string());
        }
        let (good, all) = (self.meetings.iter().filter(|meeting| meeting.without_nat).count(), self.meetings.len());
        let verdict = if good == all {
            format!("every pod reached every pod, without NAT ({good} of {all})")
        } else {
            format!("only {good} of {all} pairs reached each other without NAT")
        };
        let (on, off) = match (colours, good == all) {
            (false, _) => ("", ""),
            (true, true) => ("\x1b[32m", "\x1b[0m"),
            (true, false) => ("\x1b[31m", "\x1b[0m"),
        };
        text.push_str(&format!("\n{on}{verdict}{off}\n"));
        text
    }

    fn pod_table(&self) -> Table {
        let mut table = Table::new(["pod", "address", "node", "node address", "node's pod subnet"]);
        for pod in &self.pods {
            let node = self.nodes.iter().find(|node| node.name == pod.node);
            let (address, subnet) =
                node.map(|node| (node.address.to_string(), node.subnet.clone())).unwrap_or_default();
            table.row([pod.name.clone(), pod.address.to_string(), pod.node.clone(), address, subnet]);
        }
        table
    }

    /// A row per client, a column per server.
    fn matrix(&self) -> Table {
        let servers = self.pods.iter().map(|pod| pod.name.as_str());
        let mut table = Table::new(["from \\ to"].into_iter().chain(servers).chain(["seen as"]));
        for client in &self.pods {
            let meetings = || self.meetings.iter().filter(|meeting| meeting.from == client.name);
            let times = meetings().map(|meeting| meeting.rtt_ms.map_or("lost".into(), |time| format!("{time:.2}")));
            let seen: BTreeSet<_> = meetings().filter_map(|meeting| meeting.seen).collect();
            let seen: Vec<String> = seen.iter().map(ToString::to_string).collect();
            let note = if seen == [client.address.to_string()] { " (its own)" } else { "" };
            table.row([client.name.clone()].into_iter().chain(times).chain([format!("{}{note}", seen.join(", "))]));
        }
        table
    }

    fn fault_table(&self) -> Table {
        let mut table = Table::new(["what was done", "packets sent", "lost", "healed after"]);
        for fault in &self.faults {
            let healed = if fault.lost == 0 { "no outage".into() } else { format!("{:.0} ms", fault.outage_ms) };
            table.row([fault.what.clone(), fault.sent.to_string(), fault.lost.to_string(), healed]);
        }
        table
    }
}

/// What to type to look into the cluster while it runs.
pub(super) fn how_to_look_inside(cluster: &Cluster) -> String {
    let user = if Uid::effective().is_root() && in_user_namespace() { " -U --preserve-credentials" } else { "" };
    let mut text = String::from("\nThe cluster stays until you press Ctrl-C. From another terminal:\n\n");
    for node in &cluster.nodes {
        if let Some(pid) = node.daemon_pid() {
            let _ = writeln!(text, "  nsenter -t {pid}{user} -n ip route      # {}", node.host.name);
        }
        for pod in &node.pods {
            let _ = writeln!(text, "  nsenter -t {}{user} -n ip address    # {}", pod.sandbox.pid(), pod.name);
        }
    }
    let ends = cluster.nodes.first().and_then(|node| node.pods.first()).zip(cluster.pods().last());
    if let (Some((from, to)), Ok(demo)) = (ends, std::env::current_exe()) {
        let pid = from.sandbox.pid();
        let _ = writeln!(text, "  nsenter -t {pid}{user} -n {} probe {}", demo.display(), to.address);
    }
    if let Some(directory) = cluster.nodes.first().and_then(|node| node.directory().parent()) {
        let _ = writeln!(text, "  ls {}    # logs, leases, subnet files", directory.display());
    }
    text
}

/// Root of the machine's first user namespace has the whole range of user numbers.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}
