//! Backends: what this node announces to the others, and how its kernel must look for the leases there are. Both are pure.

mod desired;
mod extension;
mod host_gw;
mod ipip;
pub mod udp;
mod vxlan;
mod wireguard;

use crate::checksum::{KernelRelease, TxChecksum};
use crate::extension::{Commands, Plan};
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Lease, LeaseTable, overlap};
use crate::network_config::{self, NetworkConfig};
use crate::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use kernel::wireguard::PublicKey;
use kernel::{Mac, Overlay, Scope};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

pub use desired::Desired;
pub use extension::Extension;
pub use host_gw::HostGw;
pub use ipip::Ipip;
pub use udp::Udp;
pub use vxlan::Vxlan;
pub use wireguard::WireGuard;

/// A backend, ready for use.
#[derive(Clone, Debug)]
pub enum Backend {
    /// VXLAN tunnels between all nodes
    Vxlan(Vxlan),
    /// routes through the other nodes, which share a network segment
    HostGw(HostGw),
    /// IPv4 tunnels between all nodes
    Ipip(Ipip),
    /// packets through this process
    Udp(Udp),
    /// subnets are leased, and how they are reached is somebody else's business
    Alloc,
    /// commands of the administrator's
    Extension(Extension),
    /// encrypted tunnels between all nodes
    WireGuard(WireGuard),
}

/// What this process has to do itself for packets to reach the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// nothing: the kernel carries them
    None,
    /// carry them, at most one plan for each family
    Udp(Vec<udp::Plan>),
    /// run commands
    Commands(Arc<Commands>, Plan),
}

/// What a node has from a former life, or has made for this one, and the backend needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Means {
    /// hardware addresses of tunnel devices that exist already: they are kept, since the other nodes know them
    pub macs: PerFamily<Mac>,
    /// who computes the checksums of pods' packets, where this node was told otherwise than all
    pub tx_checksum: Option<TxChecksum>,
    /// the running kernel
    pub kernel: Option<KernelRelease>,
    /// WireGuard: the public key, and whether the kernel carries the packets
    pub wireguard: Option<(PublicKey, bool)>,
}

impl Backend {
    /// The backend that the network configuration names.
    ///
    /// # Errors
    /// What it lacks.
    pub fn new(config: &NetworkConfig, means: Means) -> Result<Self, String> {
        Ok(match &config.backend {
            network_config::Backend::Vxlan(vxlan) => Backend::Vxlan(Vxlan::new(vxlan.clone(), means)),
            network_config::Backend::HostGw => Backend::HostGw(HostGw),
            network_config::Backend::Ipip { direct_routing } => Backend::Ipip(Ipip::new(*direct_routing)),
            network_config::Backend::Udp { port } => Backend::Udp(Udp::new(*port)),
            network_config::Backend::Alloc => Backend::Alloc,
            network_config::Backend::Extension(commands) => {
                Backend::Extension(Extension { commands: commands.clone(), data: None })
            }
            network_config::Backend::WireGuard(config) => {
                let (public_key, in_kernel) = means.wireguard.ok_or("backend wireguard: this node has no key")?;
                Backend::WireGuard(WireGuard::new(config.clone(), public_key, in_kernel))
            }
        })
    }

    /// The same with those settings of `config` that can change while it is in use
    /// ([`NetworkConfig::change_to`](crate::network_config::NetworkConfig::change_to)).
    #[must_use]
    pub fn with(&self, config: &network_config::Backend) -> Self {
        match (self, config) {
            (Backend::Vxlan(vxlan), network_config::Backend::Vxlan(config)) => {
                Backend::Vxlan(vxlan.with(config.clone()))
            }
            (Backend::Ipip(_), network_config::Backend::Ipip { direct_routing }) => {
                Backend::Ipip(Ipip::new(*direct_routing))
            }
            (Backend::WireGuard(wireguard), network_config::Backend::WireGuard(config)) => {
                Backend::WireGuard(wireguard.with(config.clone()))
            }
            // The others have nothing that can.
            _ => self.clone(),
        }
    }

    /// What the other nodes must know of this one.
    pub fn announcement(&self, uplink: &Uplink, families: &[Family]) -> Announcement {
        match self {
            Backend::Vxlan(vxlan) => vxlan.announcement(uplink, families),
            Backend::HostGw(host_gw) => host_gw.announcement(uplink, families),
            Backend::Extension(extension) => extension.announcement(uplink, families),
            Backend::Ipip(_) | Backend::Udp(_) | Backend::Alloc => {
                let address = |family: &Family| Some((*family, uplink.public(*family)?));
                let endpoint = |(family, public_ip)| (family, Endpoint { public_ip, data: None });
                let endpoints = families.iter().filter_map(address).map(endpoint).collect();
                Announcement { backend_type: self.backend_type().into(), endpoints }
            }
            Backend::WireGuard(wireguard) => wireguard.announcement(uplink, families),
        }
    }

    /// How the kernel must look for `node` and its peers. The own lease among `leases` is no peer.
    ///
    /// It is a sum: what the node has for itself, and a part for each peer that depends on nothing but the node and that
    /// peer. Where two parts meet, the first lease has the place, and it counts as [contested](Desired::contested).
    pub fn desired(&self, node: &Node<'_>, leases: &LeaseTable) -> Desired {
        let overlay = match self {
            Backend::Vxlan(vxlan) => vxlan.base(node.uplink, node.own),
            Backend::Ipip(_) => Ipip::base(node.uplink, node.own),
            Backend::Udp(_) => Udp::base(node),
            Backend::HostGw(_) | Backend::Alloc | Backend::Extension(_) => Overlay::default(),
            Backend::WireGuard(wireguard) => wireguard.base(node),
        };
        self.add_peers(node, leases, Desired { overlay, ..Desired::default() })
    }

    /// The parts of these peers alone.
    pub fn peers(&self, node: &Node<'_>, leases: &LeaseTable) -> Desired {
        self.add_peers(node, leases, Desired::default())
    }

    fn add_peers(&self, node: &Node<'_>, leases: &LeaseTable, mut desired: Desired) -> Desired {
        for lease in self.others(node, leases) {
            let mut parts = Vec::new();
            for peer in node.peers(self.backend_type(), lease) {
                match peer.and_then(|peer| self.reach(node, &peer)) {
                    Ok(part) => parts.push(part),
                    Err(reason) => desired.leave_out(lease, reason),
                }
            }
            desired.put(lease, parts);
        }
        desired
    }

    /// The leases that may be peers.
    fn others<'a>(&self, node: &Node<'a>, leases: &'a LeaseTable) -> impl Iterator<Item = &'a Lease> {
        let (own, has_peers) = (node.own.subnets, !matches!(self, Backend::Alloc));
        leases.iter().filter(move |lease| has_peers && lease.subnets != own)
    }

    /// What this process has to do itself for the nodes of `leases`.
    pub fn work(&self, node: &Node<'_>, leases: &LeaseTable) -> Work {
        let peers = |lease| node.peers(self.backend_type(), lease).into_iter().flatten();
        let others = self.others(node, leases);
        match self {
            Backend::Udp(udp) => Work::Udp(udp.plans(node, others.flat_map(peers))),
            Backend::Extension(extension) => {
                let nodes = others.map(|lease| (lease, peers(lease).collect()));
                Work::Commands(extension.commands.clone(), extension.plan(node, nodes))
            }
            Backend::Vxlan(_) | Backend::HostGw(_) | Backend::Ipip(_) | Backend::WireGuard(_) | Backend::Alloc => {
                Work::None
            }
        }
    }

    /// What makes one family of a peer reachable, or why it cannot be.
    fn reach(&self, node: &Node<'_>, peer: &Peer<'_>) -> Result<Overlay, String> {
        match self {
            Backend::Vxlan(vxlan) => vxlan.reach(node.uplink, peer),
            Backend::HostGw(host_gw) => host_gw.reach(node.uplink, peer),
            Backend::Ipip(ipip) => Ok(ipip.reach(node.uplink, peer)),
            Backend::Extension(_) => Extension::data(peer.lease).map(|_| Overlay::default()),
            // There is one way to all of them, and it is in the base.
            Backend::Udp(_) | Backend::Alloc => Ok(Overlay::default()),
            Backend::WireGuard(wireguard) => wireguard.reach(node, peer),
        }
    }

    fn backend_type(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => vxlan::TYPE,
            Backend::HostGw(_) => host_gw::TYPE,
            Backend::Ipip(_) => ipip::TYPE,
            Backend::Extension(_) => extension::TYPE,
            // flannel has no name for them.
            Backend::Udp(_) | Backend::Alloc => "",
            Backend::WireGuard(_) => wireguard::TYPE,
        }
    }

    /// MTU in bytes of the pod network over this underlay.
    pub fn mtu(&self, uplink: &Uplink, families: &[Family]) -> u32 {
        match self {
            Backend::Vxlan(vxlan) => vxlan.mtu(uplink, families),
            Backend::Ipip(_) => Ipip::mtu(uplink),
            Backend::Udp(_) => Udp::mtu(uplink, families),
            Backend::HostGw(_) | Backend::Alloc | Backend::Extension(_) => uplink.mtu(families),
            Backend::WireGuard(wireguard) => wireguard.mtu(uplink, families),
        }
    }

    /// What an operator should know of this backend by this way.
    pub fn remark(&self, way: &Way) -> Option<String> {
        match self {
            Backend::Vxlan(vxlan) => vxlan.checksums().remark(way),
            Backend::HostGw(_) | Backend::Extension(_) => (way.public != way.local)
                .then(|| format!("this backend tells the others of {} all the same", way.local)),
            Backend::Ipip(_) | Backend::Udp(_) | Backend::WireGuard(_) | Backend::Alloc => None,
        }
    }

    /// Where the outer packets of this node come from, and the UDP ports that they go to.
    pub fn tunnels(&self, uplink: &Uplink) -> BTreeSet<(IpAddr, u16)> {
        let ports = match self {
            Backend::Vxlan(vxlan) => vec![vxlan.port()],
            Backend::Udp(udp) => vec![udp.port()],
            Backend::WireGuard(wireguard) => wireguard.ports().into_values().collect(),
            Backend::HostGw(_) | Backend::Ipip(_) | Backend::Alloc | Backend::Extension(_) => Vec::new(),
        };
        let locals = uplink.ways.iter().map(|(_, way)| way.local);
        locals.flat_map(|local| ports.iter().map(move |port| (local, *port))).collect()
    }

    /// Names of the devices that are ours with this backend.
    pub fn devices(&self) -> Vec<(Family, String)> {
        match self {
            Backend::Vxlan(vxlan) => Family::ALL.map(|family| (family, vxlan.device(family))).into(),
            Backend::Ipip(_) => vec![(Family::V4, ipip::DEVICE.into())],
            Backend::Udp(_) => Family::ALL.map(|family| (family, Udp::device(family).into())).into(),
            Backend::HostGw(_) | Backend::Alloc | Backend::Extension(_) => Vec::new(),
            Backend::WireGuard(_) => WireGuard::devices(),
        }
    }

    /// What to look at in the kernel.
    pub fn scope(&self, config: &NetworkConfig) -> Scope {
        // Routes to pods that others make are a predecessor's, but where it is others who are to make them.
        let others_make_them = matches!(self, Backend::Alloc | Backend::Extension(_));
        let networks = if others_make_them { PerFamily::default() } else { config.networks() };
        Scope {
            devices: self.devices().into_iter().map(|(_, name)| name).collect(),
            networks: networks.iter().map(|(_, network)| *network).collect(),
            own: Vec::new(),
        }
    }
}

/// The one MTU of pods with addresses of these families: that of the narrower way, and enough for the families. What is too
/// large for a way all the same is for the node to tell, as any router does.
fn pod_mtu(families: &[Family], way: impl Fn(Family) -> u32) -> u32 {
    let least = families.iter().map(|family| family.least_mtu()).max().unwrap_or(0);
    families.iter().map(|family| way(*family)).min().unwrap_or(least).max(least)
}

/// This node, as far as what it wants for its peers depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// the pod network of each family
    pub networks: &'a PerFamily<IpNetwork>,
    /// the interfaces between nodes
    pub uplink: &'a Uplink,
    /// this node's lease
    pub own: &'a Lease,
}

impl Node<'_> {
    /// A peer for each family that this node and the lease have, or why there is none.
    fn peers<'a>(&self, backend_type: &str, lease: &'a Lease) -> Vec<Result<Peer<'a>, String>> {
        let theirs = &lease.announcement.backend_type;
        if theirs != backend_type {
            let named = |name: &str| if name.is_empty() { "none (udp, alloc)".into() } else { format!("{name:?}") };
            return vec![Err(format!("its backend is {}, ours {}", named(theirs), named(backend_type)))];
        }
        let shared = lease.subnets.iter().filter(|(family, _)| self.own.subnets.get(*family).is_some());
        let peer = |(family, subnet): (Family, &IpNetwork)| {
            let endpoint = lease.announcement.endpoints.get(family);
            let endpoint = endpoint.ok_or_else(|| format!("it announces no public {family} address"))?;
            match self.objection(family, subnet, endpoint.public_ip) {
                Some(objection) => Err(objection),
                None => Ok(Peer { lease, family, subnet: *subnet, endpoint }),
            }
        };
        shared.map(peer).collect()
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
        let underlay = [self.uplink.local(family), Some(public_ip)];
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
