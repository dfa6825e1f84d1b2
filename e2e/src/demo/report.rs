//! What the demonstration found, as a value.

use crate::Result;
use crate::cluster::Cluster;
use crate::pod::Pod;
use crate::probe::Answer;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};

/// Everything that is shown at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// how packets travelled
    pub backend: String,
    /// where leases were kept
    pub store: String,
    /// the nodes
    pub nodes: Vec<NodeRow>,
    /// the pods of all nodes
    pub pods: Vec<PodRow>,
    /// every pod asked every pod
    pub meetings: Vec<Meeting>,
    /// between pods on two nodes, if there are two
    pub throughput: Option<Throughput>,
    /// what was broken, and how it went
    pub faults: Vec<Fault>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    /// its name
    pub name: String,
    /// its address on the underlay
    pub address: Ipv4Addr,
    /// what it leased, as in its subnet file
    pub subnet: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodRow {
    /// its name
    pub name: String,
    /// where it runs
    pub node: String,
    /// its address
    pub address: IpAddr,
}

/// One pod asked another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Meeting {
    /// the client
    pub from: String,
    /// the server
    pub to: String,
    /// round-trip time in milliseconds, if there was an answer
    pub rtt_ms: Option<f64>,
    /// the client's address as the server saw it
    pub seen: Option<IpAddr>,
    /// the server saw the client's own address
    pub without_nat: bool,
    /// why there was no answer
    pub error: Option<String>,
}

/// How fast data went from one pod to another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// the sender
    pub from: String,
    /// the receiver
    pub to: String,
    /// payload of one TCP connection
    pub bits_per_second: f64,
}

/// Something that was broken under a stream of packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// what was done
    pub what: String,
    /// packets sent meanwhile
    pub sent: usize,
    /// packets without an answer
    pub lost: usize,
    /// the longest time without any answer, in milliseconds
    pub outage_ms: f64,
}

impl Meeting {
    pub(super) fn of(from: &Pod, to: &Pod, answer: &Result<Answer>) -> Self {
        let seen = answer.as_ref().ok().map(|answer| answer.seen);
        Meeting {
            from: from.name.clone(),
            to: to.name.clone(),
            rtt_ms: answer.as_ref().ok().map(|answer| answer.rtt.as_secs_f64() * 1000.0),
            seen,
            without_nat: seen == Some(from.address),
            error: answer.as_ref().err().map(ToString::to_string),
        }
    }
}

impl Report {
    /// Notes who takes part.
    pub(super) fn introduce(&mut self, cluster: &Cluster) -> Result<()> {
        for node in &cluster.nodes {
            let subnet = node.subnet_file()?.remove("FLANNEL_SUBNET").unwrap_or_default();
            self.nodes.push(NodeRow { name: node.host.name.clone(), address: node.host.address, subnet });
            for pod in &node.pods {
                self.pods.push(PodRow { name: pod.name.clone(), node: node.host.name.clone(), address: pod.address });
            }
        }
        Ok(())
    }

    /// An error if a pod did not reach another one, or was seen under another address than its own.
    pub(super) fn verdict(&self) -> Result<()> {
        let failed = |meeting: &&Meeting| !meeting.without_nat;
        match self.meetings.iter().filter(failed).count() {
            0 => Ok(()),
            failures => Err(format!("{failures} of {} meetings failed", self.meetings.len()).into()),
        }
    }
}
