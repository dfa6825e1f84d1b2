//! Backends: what this node announces to the others, and how its kernel must look for the leases there are. Both are pure.

mod host_gw;
mod vxlan;

use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Lease, LeaseTable, overlap};
use crate::network_config::{self, NetworkConfig};
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::{Mac, Overlay, Scope};

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

    /// How the kernel must look for `own` and its peers. The own lease among `leases` is no peer.
    pub fn desired(&self, uplink: &Uplink, own: &Lease, leases: &LeaseTable) -> Desired {
        let mut desired = Desired::default();
        match self {
            Backend::Vxlan(vxlan) => vxlan.desired(uplink, own, leases, &mut desired),
            Backend::HostGw(host_gw) => host_gw.desired(uplink, own, leases, &mut desired),
        }
        desired
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

/// The peers of `own`, one for each lease and family: those of the same backend whose subnet does not collide with ours.
fn peers<'a>(backend_type: &str, own: &Lease, leases: &'a LeaseTable, left_out: &mut Vec<String>) -> Vec<Peer<'a>> {
    let mut peers = Vec::new();
    for lease in leases.iter().filter(|lease| lease.subnets != own.subnets) {
        if lease.announcement.backend_type != backend_type {
            left_out
                .push(format!("{lease}: its backend is {:?}, ours {backend_type:?}", lease.announcement.backend_type));
            continue;
        }
        for (family, subnet) in lease.subnets.iter() {
            let Some(own_subnet) = own.subnets.get(family) else { continue };
            if overlap(own_subnet, subnet) {
                left_out.push(format!("{lease}: {subnet} overlaps our own {own_subnet}"));
                continue;
            }
            match lease.announcement.endpoints.get(family) {
                Some(endpoint) => peers.push(Peer { lease, family, subnet: *subnet, endpoint }),
                None => left_out.push(format!("{lease}: it announces no public {family} address")),
            }
        }
    }
    peers
}

/// One family of another node's lease.
struct Peer<'a> {
    lease: &'a Lease,
    family: Family,
    subnet: IpNetwork,
    endpoint: &'a Endpoint,
}
