//! udp: packets go through a TUN device to this process, which sends them to the other nodes as they are, in UDP. Slow, and
//! possible wherever there are TUN devices. Interoperable with flannel's, which has it for IPv4 on one architecture only.

mod packet;
mod proxy;
mod routes;

use super::{Node, Peer, pod_mtu};
use crate::family::{Family, PerFamily};
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::{Overlay, Route, TunLink, Tunnel};
use std::collections::BTreeMap;
use std::net::SocketAddr;

pub use proxy::{Plan, Proxy};

/// The udp backend.
#[derive(Clone, Debug)]
pub struct Udp {
    /// on which all nodes of the cluster listen
    port: u16,
}

impl Udp {
    pub(super) fn new(port: u16) -> Self {
        Udp { port }
    }

    /// The UDP port that packets come from and go to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Name of the device of a family: flannel's, and one that the kernel does not count as another of these.
    pub(super) fn device(family: Family) -> &'static str {
        match family {
            Family::V4 => "flannel0",
            Family::V6 => "flannel0-v6",
        }
    }

    /// Outer IP header and UDP: 20 or 40, and 8 bytes. What the underlay is too small for is sent in fragments.
    fn device_mtu(uplink: &Uplink, family: Family) -> u32 {
        let overhead = match family {
            Family::V4 => 28,
            Family::V6 => 48,
        };
        uplink.mtu(&[family]).saturating_sub(overhead).max(family.least_mtu())
    }

    pub(super) fn mtu(uplink: &Uplink, families: &[Family]) -> u32 {
        pod_mtu(families, |family| Self::device_mtu(uplink, family))
    }

    /// What this node has whoever its peers are: a device of each family with its address, and one route for all nodes. The
    /// proxy tells whoever sends to a node that there is not.
    pub(super) fn base(node: &Node<'_>) -> Overlay {
        let mut base = Overlay::default();
        for (family, subnet) in node.own.subnets.iter() {
            let Some(network) = node.networks.get(family) else { continue };
            let device = Self::device(family).to_owned();
            let link = Tunnel::Tun(TunLink { mtu: Self::device_mtu(node.uplink, family) });
            base.links.insert(device.clone(), link);
            base.addresses.insert((device.clone(), IpNetwork::from(subnet.network())));
            let all_nodes = IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network);
            base.routes.insert(all_nodes, Route { via: None, dev: device, onlink: false });
        }
        base
    }

    /// What the proxy of each family has to do.
    pub(super) fn plans<'a>(&self, node: &Node<'_>, peers: impl Iterator<Item = Peer<'a>>) -> Vec<Plan> {
        let mut plans: PerFamily<Plan> = PerFamily::from_fn(|family| {
            let bind = SocketAddr::new(node.uplink.local(family)?, self.port);
            let own = *node.own.subnets.get(family)?;
            Some(Plan { family, device: Self::device(family).into(), bind, own, nodes: BTreeMap::new() })
        });
        for peer in peers {
            if let Some(plan) = plans.get_mut(peer.family) {
                plan.nodes.insert(peer.subnet, SocketAddr::new(peer.endpoint.public_ip, self.port));
            }
        }
        [plans.v4, plans.v6].into_iter().flatten().collect()
    }
}

/// For the fuzz targets, see [`packet`].
#[cfg(fuzzing)]
pub(crate) fn route(family: Family, bytes: &[u8]) {
    packet::route(family, bytes);
}
