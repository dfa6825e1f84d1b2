//! How the kernel must look for the overlay: a plain value, computed by a backend, observed from the kernel, and compared.

use crate::Mac;
use crate::netlink::RouteKind;
use crate::wireguard::{PublicKey, Remote};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Everything a backend wants to exist in the kernel, or everything of ours that does exist. One value for both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// devices of ours, by name
    pub links: BTreeMap<String, Tunnel>,
    /// addresses on devices of ours
    pub addresses: BTreeSet<(String, IpNetwork)>,
    /// routes by destination
    pub routes: BTreeMap<IpNetwork, Route>,
    /// networks to which packets are refused, unless a route leads there, and how (`Unreachable` or `Blackhole`): they never
    /// take the default route
    pub refusals: BTreeMap<IpNetwork, RouteKind>,
    /// permanent neighbour entries on devices of ours: (device, address) -> MAC
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// forwarding database entries on devices of ours: (device, MAC) -> outer destination
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
    /// WireGuard peers: (device, key). Who carries the packets, the kernel or a process, is told of them apart from all else
    /// ([`crate::wireguard`]), so that they are desired and never observed here.
    pub peers: BTreeMap<(String, PublicKey), Remote>,
    /// whose pods have an address: (device, network) -> key of the peer
    pub allowed: BTreeMap<(String, IpNetwork), PublicKey>,
    /// what is observed at times and never desired
    pub drift: Drift,
}

impl Overlay {
    /// Makes of this desired state one that removes and changes none of the ways to peers which exist, and adds what is
    /// missing: for who does not know better than the one who made them.
    pub fn give_way_to(&mut self, actual: &Overlay) {
        let goes = |device: &str| actual.links.contains_key(device) && !self.links.contains_key(device);
        let routes = actual.routes.iter().filter(|(_, route)| !goes(&route.dev));
        let neighbours = actual.neighbours.iter().filter(|((device, _), _)| !goes(device));
        let fdb = actual.fdb.iter().filter(|((device, _), _)| !goes(device));
        let strays = actual.drift.strays.iter().filter(|stray| !self.routes.contains_key(&stray.dst));
        self.drift.strays.extend(strays.cloned());
        self.routes.extend(routes.map(|(dst, route)| (*dst, route.clone())));
        self.neighbours.extend(neighbours.map(|(key, mac)| (key.clone(), *mac)));
        self.fdb.extend(fdb.map(|(key, dst)| (key.clone(), *dst)));
    }
}

/// What stands between the observed and any desired state, and fits none of the fields of [`Overlay`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// devices that have to go: of a kind that we would not make, under names of ours; and of ours, under other names
    pub obstacles: BTreeSet<String>,
    /// devices of ours that are switched off
    pub down: BTreeSet<String>,
    /// routes in our place that we would not set this way: those of a predecessor without our mark, and duplicates
    pub strays: BTreeSet<StrayRoute>,
}

/// A route that has to go, with all that tells it from others to its destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StrayRoute {
    /// destination
    pub dst: IpNetwork,
    /// gateway
    pub via: Option<IpAddr>,
    /// output device
    pub dev: Option<String>,
    /// who made it (RTPROT_*)
    pub protocol: u8,
    /// metric
    pub metric: Option<u32>,
    /// what happens to the packets
    pub kind: RouteKind,
}

/// A device of ours, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN
    Vxlan(VxlanLink),
    /// IPv4 in IPv4
    Ipip(IpipLink),
    /// packets go to a process
    Tun(TunLink),
    /// the kernel's own WireGuard
    WireGuard(WireGuardLink),
}

impl Tunnel {
    /// MTU in bytes.
    pub fn mtu(&self) -> u32 {
        match self {
            Tunnel::Vxlan(link) => link.mtu,
            Tunnel::Ipip(link) => link.mtu,
            Tunnel::Tun(link) => link.mtu,
            Tunnel::WireGuard(link) => link.mtu,
        }
    }

    /// Hardware address, where the kind has one.
    pub fn mac(&self) -> Option<Mac> {
        match self {
            Tunnel::Vxlan(link) => Some(link.mac),
            Tunnel::Ipip(_) | Tunnel::Tun(_) | Tunnel::WireGuard(_) => None,
        }
    }

    /// Name of the device that its outer packets leave by, where it is bound to one.
    pub fn underlay(&self) -> Option<&str> {
        match self {
            Tunnel::Vxlan(link) => Some(&link.underlay),
            Tunnel::Ipip(_) | Tunnel::Tun(_) | Tunnel::WireGuard(_) => None,
        }
    }

    /// Whether checksums are left to the underlay, where it is to be this way or the other.
    pub fn tx_checksum(&self) -> Option<bool> {
        match self {
            Tunnel::Vxlan(link) => link.tx_checksum,
            Tunnel::Ipip(_) | Tunnel::Tun(_) | Tunnel::WireGuard(_) => None,
        }
    }

    /// The same device but for its MTU, hardware address and checksum offload, which can change while it lives.
    pub fn with(&self, mtu: u32, mac: Option<Mac>, tx_checksum: Option<bool>) -> Self {
        match self {
            Tunnel::Vxlan(link) => {
                Tunnel::Vxlan(VxlanLink { mtu, mac: mac.unwrap_or(link.mac), tx_checksum, ..link.clone() })
            }
            Tunnel::Ipip(link) => Tunnel::Ipip(IpipLink { mtu, ..link.clone() }),
            Tunnel::Tun(_) => Tunnel::Tun(TunLink { mtu }),
            Tunnel::WireGuard(_) => Tunnel::WireGuard(WireGuardLink { mtu }),
        }
    }
}

/// A device that puts IPv4 packets into IPv4 packets (RFC 2003), to whatever gateway a route names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpipLink {
    /// outer source address
    pub local: Ipv4Addr,
    /// MTU in bytes
    pub mtu: u32,
}

/// A persistent TUN device, which a process may or may not hold ([`crate::tun`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunLink {
    /// MTU in bytes
    pub mtu: u32,
}

/// A device of the kernel's WireGuard. Its keys and peers are no part of an overlay ([`crate::wireguard`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuardLink {
    /// MTU in bytes
    pub mtu: u32,
}

/// A VXLAN device (RFC 7348; attributes as flannel sets them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanLink {
    /// VXLAN network identifier, 24 bits
    pub vni: u32,
    /// outer UDP destination port
    pub port: u16,
    /// name of the underlay device
    pub underlay: String,
    /// outer source address
    pub local: IpAddr,
    /// hardware address
    pub mac: Mac,
    /// MTU in bytes
    pub mtu: u32,
    /// learn remote addresses from received packets
    pub learning: bool,
    /// group based policy extension
    pub gbp: bool,
    /// the checksums of pods' packets are left to the underlay (observed), or are to be (desired). None: unknown, or as they are
    pub tx_checksum: Option<bool>,
}

/// A unicast route of the main table that carries our protocol number and the family's default metric. Its destination
/// has no host bits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// gateway; none: on link
    pub via: Option<IpAddr>,
    /// output device
    pub dev: String,
    /// the gateway is reached on this device although no address of it covers the gateway
    pub onlink: bool,
}

/// One step from the observed to the desired state. Steps are in the order in which they must be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// refuse packets to a network to which no route leads, or refuse them another way
    SetRefusal(IpNetwork, RouteKind),
    /// remove a route
    DeleteRoute(IpNetwork, Route),
    /// remove a forwarding entry
    DeleteFdb(String, Mac, IpAddr),
    /// remove a neighbour entry
    DeleteNeighbour(String, IpAddr),
    /// remove an address
    DeleteAddress(String, IpNetwork),
    /// remove a device
    DeleteLink(String),
    /// make a device and bring it up
    CreateLink(String, Tunnel),
    /// bring back what can change on a living device
    UpdateLink(String, LinkUpdate),
    /// leave the checksums of packets through a tunnel to the underlay, or compute them before
    SetTxChecksum(String, bool),
    /// add an address
    AddAddress(String, IpNetwork),
    /// add or replace a neighbour entry
    SetNeighbour(String, IpAddr, Mac),
    /// add or replace a forwarding entry
    SetFdb(String, Mac, IpAddr),
    /// add a route where there is none; another's is left alone, which is a failure
    AddRoute(IpNetwork, Route),
    /// put a route in the place of our own, or of a predecessor's, without a gap
    ReplaceRoute(IpNetwork, Route),
    /// remove a route that is not as we would have set it
    DeleteStray(StrayRoute),
    /// refuse them no more
    DeleteRefusal(IpNetwork, RouteKind),
}

/// What is wrong with a living device. None and false: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkUpdate {
    /// the hardware address it must have. Setting it makes the kernel forget the neighbours on the device.
    pub mac: Option<Mac>,
    /// the MTU it must have, in bytes
    pub mtu: Option<u32>,
    /// it must be switched on
    pub up: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::SetRefusal(dst, how) => write!(f, "setting route {how} {dst}"),
            Change::DeleteRefusal(dst, how) => write!(f, "removing route {how} {dst}"),
            Change::DeleteRoute(dst, route) => write!(f, "removing route {dst}{route}"),
            Change::DeleteFdb(dev, mac, dst) => write!(f, "removing forwarding entry {mac} dst {dst} dev {dev}"),
            Change::DeleteNeighbour(dev, ip) => write!(f, "removing neighbour {ip} dev {dev}"),
            Change::DeleteAddress(dev, address) => write!(f, "removing address {address} dev {dev}"),
            Change::DeleteLink(dev) => write!(f, "deleting link {dev}"),
            Change::CreateLink(dev, link) => write!(f, "creating {dev} {link}"),
            Change::UpdateLink(dev, update) => write!(f, "changing link {dev}{update}"),
            Change::SetTxChecksum(dev, on) => {
                write!(f, "switching checksum offload of {dev} {}", if *on { "on" } else { "off" })
            }
            Change::AddAddress(dev, address) => write!(f, "adding address {address} dev {dev}"),
            Change::SetNeighbour(dev, ip, mac) => write!(f, "setting neighbour {ip} lladdr {mac} dev {dev}"),
            Change::SetFdb(dev, mac, dst) => write!(f, "setting forwarding entry {mac} dst {dst} dev {dev}"),
            Change::AddRoute(dst, route) => write!(f, "adding route {dst}{route}"),
            Change::ReplaceRoute(dst, route) => write!(f, "replacing route {dst}{route}"),
            Change::DeleteStray(stray) => write!(f, "removing route {stray}"),
        }
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tunnel::Vxlan(link) => write!(f, "vxlan id {} local {} dev {}", link.vni, link.local, link.underlay),
            Tunnel::Ipip(link) => write!(f, "ipip local {}", link.local),
            Tunnel::Tun(_) => f.write_str("tun"),
            Tunnel::WireGuard(_) => f.write_str("wireguard"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.dev)?;
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

impl fmt::Display for StrayRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        write!(f, " proto {}", self.protocol)?;
        self.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))
    }
}

impl fmt::Display for LinkUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if self.up { f.write_str(" up") } else { Ok(()) }
    }
}
