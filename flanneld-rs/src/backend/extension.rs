//! extension: commands of the administrator's make the way to each node. Nothing in the kernel is ours.

use super::{Node, Peer};
use crate::extension::{Commands, Neighbour, Plan, variables};
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Lease};
use crate::uplink::Uplink;
use std::sync::Arc;

/// The backend type in leases.
pub(super) const TYPE: &str = "extension";

/// The extension backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub(crate) commands: Arc<Commands>,
    /// what the command before the lease has said, which the other nodes' commands read
    pub(crate) data: Option<String>,
}

impl Extension {
    /// As flannel has it: the interface's own addresses, and the data once.
    pub(super) fn announcement(&self, uplink: &Uplink, families: &[Family]) -> Announcement {
        let mut data = self.data.as_ref().map(|data| serde_json::Value::String(data.clone()).to_string());
        let mut endpoints = PerFamily::default();
        for family in families {
            if let Some(public_ip) = uplink.local(*family) {
                endpoints.set(*family, Endpoint { public_ip, data: data.take() });
            }
        }
        Announcement { backend_type: TYPE.into(), endpoints }
    }

    /// The commands' data of a node.
    ///
    /// # Errors
    /// It is no JSON string.
    pub(super) fn data(lease: &Lease) -> Result<String, String> {
        let data = lease.announcement.endpoints.iter().find_map(|(_, endpoint)| endpoint.data.as_deref());
        let Some(data) = data else { return Ok(String::new()) };
        serde_json::from_str(data).map_err(|error| format!("unusable backend data {data:?}: {error}"))
    }

    /// What the commands have to do for the nodes that have peers.
    pub(super) fn plan<'a>(&self, node: &Node<'_>, nodes: impl Iterator<Item = (&'a Lease, Vec<Peer<'a>>)>) -> Plan {
        let mut environment = variables(&node.own.subnets, &node.uplink.ways.map(|_, way| way.local));
        let network = node.networks.get(Family::V4).map(ToString::to_string).unwrap_or_default();
        environment.insert("NETWORK", network);
        let ipv6_network = node.networks.get(Family::V6).map(ToString::to_string).unwrap_or_default();
        environment.insert("IPV6NETWORK", ipv6_network);
        let neighbour = |(lease, peers): (&Lease, Vec<Peer<'_>>)| {
            let subnets = peers.iter().map(|peer| (peer.family, peer.subnet)).collect();
            let public = peers.iter().map(|peer| (peer.family, peer.endpoint.public_ip)).collect();
            let data = Self::data(lease).ok().filter(|_| !peers.is_empty())?;
            Some((lease.subnets, Neighbour { subnets, public, data }))
        };
        Plan { environment, neighbours: nodes.filter_map(neighbour).collect() }
    }
}
