//! How the kernel must look for the overlay: a plain value, computed by a backend, observed from the kernel, and compared.

use crate::Mac;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything a backend wants to exist in the kernel, or everything of ours that does exist. One value for both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// devices of ours, by name
    pub links: BTreeMap<String, VxlanLink>,
    /// addresses on devices of ours
    pub addresses: BTreeSet<(String, IpNetwork)>,
    /// routes by destination
    pub routes: BTreeMap<IpNetwork, Route>,
    /// permanent neighbour entries on devices of ours: (device, address) -> MAC
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// forwarding database entries on devices of ours: (device, MAC) -> outer destination
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
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
}

/// A route of the main table that carries our protocol number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    CreateLink(String, VxlanLink),
    /// bring back what can change on a living device: address, MTU, up
    UpdateLink(String, VxlanLink),
    /// add an address
    AddAddress(String, IpNetwork),
    /// add or replace a neighbour entry
    SetNeighbour(String, IpAddr, Mac),
    /// add or replace a forwarding entry
    SetFdb(String, Mac, IpAddr),
    /// add or replace a route
    SetRoute(IpNetwork, Route),
}
