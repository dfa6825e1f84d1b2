//! ipip: IPv4 packets in IPv4 packets (RFC 2003), one device for all nodes; the gateway of a route is the node it leads to.

use super::Peer;
use crate::family::Family;
use crate::lease::Lease;
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::{IpipLink, Overlay, Route, Tunnel};
use std::net::IpAddr;

/// The backend type in leases.
pub(super) const TYPE: &str = "ipip";
/// The device's name (flannel's).
pub(super) const DEVICE: &str = "flannel.ipip";

/// The ipip backend.
#[derive(Clone, Debug)]
pub struct Ipip {
    /// plain routes to the nodes of the own network segment
    direct_routing: bool,
}

impl Ipip {
    pub(super) fn new(direct_routing: bool) -> Self {
        Ipip { direct_routing }
    }

    /// The outer header has 20 bytes.
    pub(super) fn mtu(uplink: &Uplink) -> u32 {
        uplink.mtu(&[Family::V4]).saturating_sub(20).max(Family::V4.least_mtu())
    }

    /// What this node has whoever its peers are: the device with its address.
    pub(super) fn base(uplink: &Uplink, own: &Lease) -> Overlay {
        let mut base = Overlay::default();
        // Other families are refused with the configuration.
        if let (Some(IpAddr::V4(local)), Some(subnet)) = (uplink.local(Family::V4), own.subnets.get(Family::V4)) {
            let link = IpipLink { local, mtu: Self::mtu(uplink) };
            base.links.insert(DEVICE.into(), Tunnel::Ipip(link));
            base.addresses.insert((DEVICE.into(), IpNetwork::from(subnet.network())));
        }
        base
    }

    pub(super) fn reach(&self, uplink: &Uplink, peer: &Peer<'_>) -> Overlay {
        let gateway = peer.endpoint.public_ip;
        let direct = uplink.directly(gateway).filter(|_| self.direct_routing);
        let dev = direct.map_or_else(|| DEVICE.into(), |way| way.interface.clone());
        let route = Route { via: Some(gateway), dev, onlink: direct.is_none() };
        Overlay { routes: [(peer.subnet, route)].into(), ..Overlay::default() }
    }
}
