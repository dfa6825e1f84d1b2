//! WireGuard: encrypted tunnels between all nodes, as flannel has them, with a route for each peer's subnet. What leads to no
//! peer is refused, so that pod packets never leave in clear text by the default route, whatever befalls the device.

use super::{Node, Peer, pod_mtu};
use crate::family::{Family, PerFamily};
use crate::json::Object;
use crate::lease::{Announcement, Endpoint};
use crate::network_config::{self, Mode};
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::netlink::RouteKind;
use kernel::wireguard::{PublicKey, Remote};
use kernel::{Overlay, Route, TunLink, Tunnel, WireGuardLink};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// The backend type in leases.
pub(super) const TYPE: &str = "wireguard";
/// flannel's names: one tunnel for everything, or one for each family of pods.
const DEVICE: &str = "flannel-wg";
const DEVICE_OF_IPV6: &str = "flannel-wg-v6";

/// The WireGuard backend.
#[derive(Clone, Debug)]
pub struct WireGuard {
    config: network_config::WireGuard,
    public_key: PublicKey,
    /// the kernel carries the packets, and not this process
    in_kernel: bool,
}

impl WireGuard {
    /// For a node of this public key, in a kernel that has WireGuard or has not.
    pub fn new(config: network_config::WireGuard, public_key: PublicKey, in_kernel: bool) -> Self {
        WireGuard { config, public_key, in_kernel }
    }

    /// The same tunnels with other settings.
    pub(super) fn with(&self, config: network_config::WireGuard) -> Self {
        WireGuard { config, ..*self }
    }

    /// Name of the device that carries pod packets of a family.
    fn device(&self, family: Family) -> &'static str {
        match (self.config.mode, family) {
            (Mode::Separate, Family::V6) => DEVICE_OF_IPV6,
            _ => DEVICE,
        }
    }

    /// All names that are ours, whichever are in use.
    pub(super) fn devices() -> Vec<(Family, String)> {
        vec![(Family::V4, DEVICE.into()), (Family::V6, DEVICE_OF_IPV6.into())]
    }

    /// The UDP port of the tunnel that carries a family.
    fn port(&self, family: Family) -> u16 {
        match (self.config.mode, family) {
            (Mode::Separate, Family::V6) => self.config.port_v6,
            _ => self.config.port,
        }
    }

    /// The UDP port of each device.
    pub fn ports(&self) -> BTreeMap<String, u16> {
        Family::ALL.map(|family| (self.device(family).to_owned(), self.port(family))).into()
    }

    pub(super) fn announcement(&self, uplink: &Uplink, families: &[Family]) -> Announcement {
        let endpoint = |family: &Family| {
            let public_ip = uplink.public(*family)?;
            // The order and names of flannel's own.
            let data = format!(r#"{{"PublicKey":"{}","Port":{}}}"#, self.public_key, self.port(*family));
            Some((*family, Endpoint { public_ip, data: Some(data) }))
        };
        Announcement { backend_type: TYPE.into(), endpoints: families.iter().filter_map(endpoint).collect() }
    }

    /// The pod network has one MTU: that of the family with the larger outer header.
    pub(super) fn mtu(&self, uplink: &Uplink, families: &[Family]) -> u32 {
        pod_mtu(families, |family| self.room(uplink, family, families))
    }

    /// What is left to packets of a family inside. Outer IP header, UDP, and WireGuard's header and tag: 20 or 40, and
    /// 8 + 16 + 16 bytes (section 5.4.6 of its paper).
    fn room(&self, uplink: &Uplink, family: Family, families: &[Family]) -> u32 {
        let outer = match self.config.mode {
            Mode::Separate => &[family][..],
            Mode::Ipv4 => &[Family::V4],
            Mode::Ipv6 => &[Family::V6],
            // By either, for one peer or the other.
            Mode::Auto => families,
        };
        let underlay = uplink.mtu(outer);
        let overhead = if outer.contains(&Family::V6) { 80 } else { 60 };
        self.config.mtu.unwrap_or(underlay).min(underlay).saturating_sub(overhead)
    }

    /// What this node has whoever its peers are: the devices with their addresses, and the refusal of packets to nobody.
    pub(super) fn base(&self, node: &Node<'_>) -> Overlay {
        let mut base = Overlay::default();
        let families: Vec<Family> = node.own.subnets.families().collect();
        for (family, subnet) in node.own.subnets.iter() {
            let device = self.device(family).to_owned();
            let carried: Vec<Family> =
                families.iter().filter(|other| self.device(**other) == device).copied().collect();
            // What the underlay is too small for is sent in fragments.
            let mtu = pod_mtu(&carried, |carried| self.room(node.uplink, carried, &families));
            let link =
                if self.in_kernel { Tunnel::WireGuard(WireGuardLink { mtu }) } else { Tunnel::Tun(TunLink { mtu }) };
            base.links.insert(device.clone(), link);
            base.addresses.insert((device, IpNetwork::from(subnet.network())));
            base.refusals.extend(node.networks.get(family).map(|network| (*network, RouteKind::Unreachable)));
        }
        base
    }

    pub(super) fn reach(&self, node: &Node<'_>, peer: &Peer<'_>) -> Result<Overlay, String> {
        let announced = Announced::parse(peer.endpoint)?;
        if announced.public_key == self.public_key {
            return Err("it has this node's own key: two nodes must not share a key file".into());
        }
        let endpoint = match self.config.mode {
            Mode::Separate => {
                SocketAddr::new(peer.endpoint.public_ip, announced.port.unwrap_or(self.port(peer.family)))
            }
            _ => self.single_endpoint(node.uplink, &peer.lease.announcement)?,
        };
        let outer = node.networks.get(Family::of(endpoint.ip()));
        if outer.is_some_and(|network| network.contains(endpoint.ip())) {
            return Err(format!("its address {} is inside the pod network", endpoint.ip()));
        }
        let device = self.device(peer.family);
        let mut part = Overlay::default();
        let remote =
            Remote { preshared_key: self.config.preshared_key.clone(), endpoint, keepalive: self.config.keepalive };
        part.peers.insert((device.into(), announced.public_key), remote);
        part.allowed.insert((device.into(), peer.subnet), announced.public_key);
        part.routes.insert(peer.subnet, Route { via: None, dev: device.into(), onlink: false });
        Ok(part)
    }

    /// Where the one tunnel to a node leads that carries both families.
    fn single_endpoint(&self, uplink: &Uplink, announcement: &Announcement) -> Result<SocketAddr, String> {
        let endpoints = &announcement.endpoints;
        let family = match self.config.mode {
            Mode::Ipv6 => Family::V6,
            Mode::Auto => likelier(uplink, endpoints),
            Mode::Ipv4 | Mode::Separate => Family::V4,
        };
        let endpoint = endpoints.get(family).ok_or_else(|| format!("it announces no public {family} address"))?;
        // The device has one port. flannel announces it with the IPv4 data, and with those of IPv6 that of a device that it
        // has in separate mode only.
        let announced = endpoints.get(Family::V4).unwrap_or(endpoint);
        let port = Announced::parse(announced)?.port.unwrap_or(self.config.port);
        Ok(SocketAddr::new(endpoint.public_ip, port))
    }
}

/// The outer family by which a connection is likelier to come about, by flannel's rules: IPv4 to a public address, then IPv6
/// between public ones, then IPv4.
fn likelier(uplink: &Uplink, endpoints: &PerFamily<Endpoint>) -> Family {
    let theirs = endpoints.map(|_, endpoint| endpoint.public_ip);
    let both = |family| theirs.get(family).copied().zip(uplink.local(family));
    match (theirs.v4, theirs.v6) {
        (_, None) => Family::V4,
        (None, Some(_)) => Family::V6,
        _ if both(Family::V4).is_some_and(|(theirs, _)| !is_private(theirs)) => Family::V4,
        _ if both(Family::V6).is_some_and(|(theirs, ours)| !is_private(theirs) && !is_private(ours)) => Family::V6,
        _ => Family::V4,
    }
}

/// Of the ranges that flannel takes for private: RFC 1918, and RFC 4193 or link-local for IPv6.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// What a node tells the others of its tunnel.
struct Announced {
    public_key: PublicKey,
    /// None: older nodes do not tell, and have the same as ours
    port: Option<u16>,
}

impl Announced {
    fn parse(endpoint: &Endpoint) -> Result<Self, String> {
        let data = endpoint.data.as_deref().unwrap_or("null");
        let unusable = |why: &dyn std::fmt::Display| format!("unusable backend data {data:?}: {why}");
        let object: Object = serde_json::from_str(data).map_err(|error| unusable(&error))?;
        let key: Option<String> = object.read("PublicKey").map_err(|error| unusable(&error))?;
        let port: Option<u16> = object.read("Port").map_err(|error| unusable(&error))?;
        let public_key = key.unwrap_or_default().parse().map_err(|error| unusable(&format!("PublicKey: {error}")))?;
        Ok(Announced { public_key, port: port.filter(|port| *port != 0) })
    }
}
