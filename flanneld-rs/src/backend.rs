//! Backends: what this node announces to the others, and how its kernel must look for the leases there are. Both are pure.

mod host_gw;
mod vxlan;

use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Lease, LeaseTable, overlap};
use crate::network_config::{self, NetworkConfig};
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::{Mac, Overlay, Scope};
use std::net::IpAddr;

pub use host_gw::HostGw;
pub use vxlan::Vxlan;

/// A backend, ready for use.
#[derive(Clone, Debug)]
pub enum Backend {
    /// VXLAN tunnels between all nodes
    Vxlan(Vxlan),
    /// routes through the other nodes, which share a network segment
    HostGw(HostGw),
}

/// The kernel's state that a lease table asks for, and what could not be made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// the state
    pub overlay: Overlay,
    /// peers left out, wholly or for one family, with the reason
    pub left_out: Vec<String>,
}

impl Backend {
    /// The backend that the network configuration names. `macs` are hardware addresses of tunnel devices that exist
    /// already: they are kept, since the other nodes know them.
    pub fn new(config: &NetworkConfig, macs: PerFamily<Mac>) -> Self {
        match &config.backend {
            network_config::Backend::Vxlan(vxlan) => Backend::Vxlan(Vxlan::new(vxlan.clone(), macs)),
            network_config::Backend::HostGw => Backend::HostGw(HostGw),
        }
    }

    /// What the other nodes must know of this one.
    pub fn announcement(&self, uplink: &Uplink, families: &[Family]) -> Announcement {
        match self {
            Backend::Vxlan(vxlan) => vxlan.announcement(uplink, families),
            Backend::HostGw(host_gw) => host_gw.announcement(uplink, families),
        }
    }

    /// How the kernel must look for `own` and its peers in `networks`. The own lease among `leases` is no peer.
    pub fn desired(
        &self,
        networks: &PerFamily<IpNetwork>,
        uplink: &Uplink,
        own: &Lease,
        leases: &LeaseTable,
    ) -> Desired {
        let mut desired = Desired::default();
        let node = Node { networks, uplink, own };
        let (peers, left_out) = node.peers(self.backend_type(), leases);
        desired.left_out = left_out;
        match self {
            Backend::Vxlan(vxlan) => vxlan.desired(uplink, own, &peers, &mut desired),
            Backend::HostGw(host_gw) => host_gw.desired(uplink, &peers, &mut desired),
        }
        desired
    }

    fn backend_type(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => vxlan::TYPE,
            Backend::HostGw(_) => host_gw::TYPE,
        }
    }

    /// MTU in bytes of the pod network over an underlay of this MTU.
    pub fn mtu(&self, uplink: &Uplink, families: &[Family]) -> u32 {
        match self {
            Backend::Vxlan(vxlan) => vxlan.mtu(uplink, families),
            Backend::HostGw(_) => uplink.mtu,
        }
    }

    /// Names of the devices that are ours with this backend.
    pub fn devices(&self) -> Vec<(Family, String)> {
        match self {
            Backend::Vxlan(vxlan) => Family::ALL.map(|family| (family, vxlan.device(family))).into(),
            Backend::HostGw(_) => Vec::new(),
        }
    }

    /// What to look at in the kernel.
    pub fn scope(&self, config: &NetworkConfig) -> Scope {
        Scope {
            devices: self.devices().into_iter().map(|(_, name)| name).collect(),
            networks: config.networks().iter().map(|(_, network)| *network).collect(),
        }
    }
}

/// This node, as far as it decides who its peers are.
struct Node<'a> {
    networks: &'a PerFamily<IpNetwork>,
    uplink: &'a Uplink,
    own: &'a Lease,
}

impl Node<'_> {
    /// The peers, one for each lease and family, and the leases that are none, with the reason.
    fn peers<'a>(&self, backend_type: &str, leases: &'a LeaseTable) -> (Vec<Peer<'a>>, Vec<String>) {
        let (mut peers, mut left_out) = (Vec::new(), Vec::new());
        for lease in leases.iter().filter(|lease| lease.subnets != self.own.subnets) {
            let theirs = &lease.announcement.backend_type;
            if theirs != backend_type {
                left_out.push(format!("{lease}: its backend is {theirs:?}, ours {backend_type:?}"));
                continue;
            }
            for (family, subnet) in lease.subnets.iter().filter(|(family, _)| self.own.subnets.get(*family).is_some()) {
                let Some(endpoint) = lease.announcement.endpoints.get(family) else {
                    left_out.push(format!("{lease}: it announces no public {family} address"));
                    continue;
                };
                match self.objection(family, subnet, endpoint.public_ip) {
                    Some(objection) => left_out.push(format!("{lease}: {objection}")),
                    None => peers.push(Peer { lease, family, subnet: *subnet, endpoint }),
                }
            }
        }
        (peers, left_out)
    }

    /// Why no route to this subnet is made. A route takes the place of any other of the same prefix, so that an entry of the
    /// store must never name one that this node itself depends on.
    fn objection(&self, family: Family, subnet: &IpNetwork, public_ip: IpAddr) -> Option<String> {
        if let Some(own) = self.own.subnets.get(family).filter(|own| overlap(own, subnet)) {
            return Some(format!("{subnet} overlaps our own {own}"));
        }
        let is_inside =
            |network: &&IpNetwork| network.contains(subnet.network()) && subnet.prefix() >= network.prefix();
        if self.networks.get(family).filter(is_inside).is_none() {
            return Some(format!("{subnet} is no part of the pod network"));
        }
        let underlay = [self.uplink.local.get(family).copied(), Some(public_ip)];
        if let Some(address) = underlay.into_iter().flatten().find(|address| subnet.contains(*address)) {
            return Some(format!("{subnet} has a node's own address in it, {address}"));
        }
        // Left from another life of this node, or just made and not yet known to be ours.
        let own = self.own.announcement.endpoints.get(family).map(|endpoint| endpoint.public_ip);
        (own == Some(public_ip)).then(|| format!("{public_ip} is our own address"))
    }
}

/// One family of another node's lease.
struct Peer<'a> {
    lease: &'a Lease,
    family: Family,
    subnet: IpNetwork,
    endpoint: &'a Endpoint,
}
