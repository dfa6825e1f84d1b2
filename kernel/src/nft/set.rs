//! Sets and maps: the part of a table that changes often.

use super::Protocol;
use crate::Mac;
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A named set, or a map if it has data.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// the key: one field, or several side by side
    pub key: Vec<Field>,
    /// what a map leads to; empty: a plain set
    pub data: Vec<Field>,
    /// the elements are prefixes and not single addresses; for keys of one address field
    pub interval: bool,
    /// the elements; of a prefix inside another one only the wider is programmed
    pub elements: BTreeSet<Element>,
}

impl Set {
    /// A set of single addresses; `field` is one of the two address fields.
    pub fn addresses(field: Field, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let elements = addresses.into_iter().map(Element::from).collect();
        Set { key: vec![field], data: Vec::new(), interval: false, elements }
    }

    /// A set of prefixes; `field` is one of the two address fields.
    pub fn networks(field: Field, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        let elements = networks.into_iter().map(Element::from).collect();
        Set { key: vec![field], data: Vec::new(), interval: true, elements }
    }

    /// A map.
    pub fn map(key: impl Into<Vec<Field>>, data: impl Into<Vec<Field>>, elements: BTreeSet<Element>) -> Self {
        Set { key: key.into(), data: data.into(), interval: false, elements }
    }
}

/// The type of one part of a key or of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// ipv4_addr
    Ipv4Address,
    /// ipv6_addr
    Ipv6Address,
    /// inet_proto
    Protocol,
    /// inet_service
    Port,
    /// ether_addr: the hardware address that the frame says it is from; for tables of [`Family::Bridge`](super::Family)
    SourceMac,
    /// ifname: the device that the packet came in by
    InputDevice,
    /// ifname: the device that the packet goes out by
    OutputDevice,
}

/// The value of one part of a key or of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// an address, written as a prefix of full length, or a prefix in an interval set
    Address(IpNetwork),
    /// a transport protocol
    Protocol(Protocol),
    /// a transport port
    Port(u16),
    /// a hardware address
    Mac(Mac),
    /// the name of a device, with zeros up to IFNAMSIZ; see [`Value::device`]
    Device([u8; 16]),
}

impl Value {
    /// The name of a device; none if it is empty or longer than 15 bytes.
    pub fn device(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let fits = (1..bytes.len()).contains(&name.len()) && !name.contains('\0');
        bytes.iter_mut().zip(name.bytes()).for_each(|(byte, letter)| *byte = letter);
        fits.then_some(Value::Device(bytes))
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        Value::Address(IpNetwork::from(address))
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// one value for each field of the key
    pub key: Vec<Value>,
    /// one value for each field of the data
    pub data: Vec<Value>,
    /// for people, and to tell whose it is, of at most 127 bytes; not for elements of interval sets
    pub comment: String,
}

impl Element {
    /// The same element with a comment.
    #[must_use]
    pub fn commented(self, comment: impl Into<String>) -> Self {
        Element { comment: comment.into(), ..self }
    }

    /// An entry of a map.
    pub fn entry(key: impl Into<Vec<Value>>, data: impl Into<Vec<Value>>) -> Self {
        Element { key: key.into(), data: data.into(), comment: String::new() }
    }
}

impl From<IpAddr> for Element {
    fn from(address: IpAddr) -> Self {
        Element::entry([address.into()], [])
    }
}

impl From<IpNetwork> for Element {
    fn from(network: IpNetwork) -> Self {
        Element::entry([Value::Address(network)], [])
    }
}
