//! Sets and maps: the part of a table that changes often.

use super::Protocol;
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
}

impl Element {
    /// An entry of a map.
    pub fn entry(key: impl Into<Vec<Value>>, data: impl Into<Vec<Value>>) -> Self {
        Element { key: key.into(), data: data.into() }
    }
}

impl From<IpAddr> for Element {
    fn from(address: IpAddr) -> Self {
        Element { key: vec![address.into()], data: Vec::new() }
    }
}

impl From<IpNetwork> for Element {
    fn from(network: IpNetwork) -> Self {
        Element { key: vec![Value::Address(network)], data: Vec::new() }
    }
}
