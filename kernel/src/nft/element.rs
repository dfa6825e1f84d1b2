//! Set elements as the kernel stores them.

use super::{Element, Field, Protocol, Set, Value};
use crate::Mac;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One element in the kernel's form. A prefix is two of them: its first address, and the first one behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Encoded {
    /// the key's bytes
    pub(super) key: Vec<u8>,
    /// not the first key behind an interval. Where one interval ends and the next starts, the end comes first: the kernel
    /// takes the other order for an overlap.
    pub(super) start: bool,
    /// the data's bytes; empty in a plain set
    pub(super) data: Vec<u8>,
    /// for people, and to tell whose it is
    pub(super) comment: String,
}

/// The wire form of `elements` of a set described by `set`; an error tells what does not fit.
pub(super) fn encode<'a>(
    set: &Set,
    elements: impl IntoIterator<Item = &'a Element>,
) -> Result<BTreeSet<Encoded>, String> {
    let elements = elements.into_iter().collect::<BTreeSet<_>>();
    let mut encoded = BTreeSet::new();
    if !set.interval {
        for element in elements {
            let (key, data) = (values(&set.key, &element.key)?, values(&set.data, &element.data)?);
            // The length goes in a byte, with the NUL; nft takes comments of less than 128 bytes.
            if element.comment.len() > 127 || element.comment.contains('\0') {
                return Err(format!("the comment {:?} has more than 127 bytes, or a NUL", element.comment));
            }
            encoded.insert(Encoded { key, start: true, data, comment: element.comment.clone() });
        }
        return Ok(encoded);
    }
    let [field] = set.key[..] else {
        return Err("an interval set has a key of one address".into());
    };
    // In the order of prefixes without host bits each comes right before those inside it.
    let mut prefixes = BTreeMap::new();
    for element in elements {
        let [Value::Address(network)] = element.key[..] else {
            return Err(format!("{:?} is no prefix", element.key));
        };
        if network.is_ipv4() != (field == Field::Ipv4Address) || field.bytes() < 4 {
            return Err(format!("{network} is of the wrong family"));
        }
        let prefix = IpNetwork::new(network.network(), network.prefix()).map_err(|error| error.to_string())?;
        prefixes.entry(prefix).or_insert(values(&set.data, &element.data)?);
    }
    let mut covered: Option<IpNetwork> = None;
    for (prefix, data) in prefixes {
        if covered.is_some_and(|outer| contains(outer, prefix)) {
            continue;
        }
        covered = Some(prefix);
        encoded.insert(Encoded { key: octets(prefix.ip()), start: true, data, comment: String::new() });
        if let Some(key) = successor(octets(prefix.broadcast())) {
            encoded.insert(Encoded { key, start: false, data: Vec::new(), comment: String::new() });
        }
    }
    Ok(encoded)
}

impl Field {
    /// The number by which the `nft` program knows the type (its datatype.h); the kernel stores it for people only.
    pub(super) fn datatype(self) -> u32 {
        match self {
            Field::Ipv4Address => 7,
            Field::Ipv6Address => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::SourceMac => 9,
            Field::InputDevice | Field::OutputDevice => 41,
        }
    }

    /// Length of a value in bytes.
    pub(super) fn bytes(self) -> usize {
        match self {
            Field::Ipv4Address => 4,
            Field::Ipv6Address | Field::InputDevice | Field::OutputDevice => 16,
            Field::SourceMac => 6,
            Field::Protocol => 1,
            Field::Port => 2,
        }
    }
}

/// The type number of fields side by side: six bits for each (nft's datatype.h).
pub(super) fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.datatype())
}

/// Length in bytes of fields side by side: each part of several is padded to a register of 32 bits.
pub(super) fn length(fields: &[Field]) -> usize {
    match fields {
        [field] => field.bytes(),
        fields => fields.iter().map(|field| field.bytes().next_multiple_of(4)).sum(),
    }
}

fn values(fields: &[Field], values: &[Value]) -> Result<Vec<u8>, String> {
    if fields.len() != values.len() {
        return Err(format!("{values:?} does not have the {} fields {fields:?}", fields.len()));
    }
    let mut bytes = Vec::with_capacity(length(fields));
    for (field, value) in fields.iter().zip(values) {
        match (field, value) {
            (Field::Ipv4Address, Value::Address(IpNetwork::V4(address))) if address.prefix() == 32 => {
                bytes.extend(address.ip().octets());
            }
            (Field::Ipv6Address, Value::Address(IpNetwork::V6(address))) if address.prefix() == 128 => {
                bytes.extend(address.ip().octets());
            }
            (Field::Protocol, Value::Protocol(protocol)) => bytes.push(*protocol as u8),
            (Field::Port, Value::Port(port)) => bytes.extend(port.to_be_bytes()),
            (Field::InputDevice | Field::OutputDevice, Value::Device(name)) => bytes.extend(name),
            (Field::SourceMac, Value::Mac(mac)) => bytes.extend(mac.0),
            _ => return Err(format!("{value:?} does not fit the field {field:?}")),
        }
        if fields.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    Ok(bytes)
}

/// The element that `encoded` is in a set described by `set`, which is no interval set; none if it does not fit.
pub(super) fn decode(set: &Set, encoded: &Encoded) -> Option<Element> {
    let (key, data) = (decoded(&set.key, &encoded.key)?, decoded(&set.data, &encoded.data)?);
    Some(Element { key, data, comment: encoded.comment.clone() })
}

fn decoded(fields: &[Field], mut bytes: &[u8]) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    for field in fields {
        let size = field.bytes();
        let value = bytes.get(..size)?;
        let padded = if fields.len() > 1 { size.next_multiple_of(4) } else { size };
        bytes = bytes.get(padded..)?;
        values.push(match field {
            Field::Ipv4Address => IpAddr::from(<[u8; 4]>::try_from(value).ok()?).into(),
            Field::Ipv6Address => IpAddr::from(<[u8; 16]>::try_from(value).ok()?).into(),
            Field::Port => Value::Port(u16::from_be_bytes(value.try_into().ok()?)),
            Field::InputDevice | Field::OutputDevice => Value::Device(value.try_into().ok()?),
            Field::SourceMac => Value::Mac(Mac(value.try_into().ok()?)),
            Field::Protocol => Value::Protocol(Protocol::numbered(*value.first()?)?),
        });
    }
    Some(values)
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// An address in network byte order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The next address, or none behind the last one: an interval up to there has no end.
fn successor(mut address: Vec<u8>) -> Option<Vec<u8>> {
    for byte in address.iter_mut().rev() {
        let (next, wrapped) = byte.overflowing_add(1);
        *byte = next;
        if !wrapped {
            return Some(address);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intervals(networks: &[&str]) -> Vec<(String, bool)> {
        let field = if networks[0].contains(':') { Field::Ipv6Address } else { Field::Ipv4Address };
        let set = Set::networks(field, networks.iter().map(|text| text.parse().unwrap()));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        encode(&set, &set.elements).unwrap().iter().map(|found| (hex(&found.key), !found.start)).collect()
    }

    #[test]
    fn a_prefix_is_its_first_address_and_the_one_behind_it() {
        assert_eq!(intervals(&["10.1.2.3/8"]), [("0a000000".into(), false), ("0b000000".into(), true)]);
        assert_eq!(intervals(&["255.0.0.0/8"]), [("ff000000".into(), false)]);
        assert_eq!(intervals(&["0.0.0.0/0"]), [("00000000".into(), false)]);
        assert_eq!(intervals(&["ff00::/8"]), [(format!("ff{:030}", 0), false)]);
    }

    #[test]
    fn a_prefix_inside_another_is_left_out_and_neighbours_stay() {
        let outer = intervals(&["10.0.0.0/8"]);
        assert_eq!(intervals(&["10.0.0.0/8", "10.0.0.0/16", "10.9.0.0/16", "10.255.255.255/32"]), outer);
        assert_eq!(intervals(&["10.9.0.0/16", "10.1.1.1/8"]), outer);
        // By their host bits the inner ones come first.
        assert_eq!(intervals(&["10.0.0.1/16", "10.0.0.5/8"]), outer);
        assert_eq!(intervals(&["10.1.0.0/16", "10.9.9.9/8", "10.8.0.0/16"]), outer);
        assert_eq!(intervals(&["10.0.0.0/9", "10.128.0.0/9"]).len(), 4);
    }

    #[test]
    fn fields_side_by_side_are_padded() {
        let set = Set::map([Field::Protocol, Field::Port], [Field::Ipv4Address, Field::Port], BTreeSet::new());
        let address = IpAddr::from([10, 0, 0, 2]);
        let element = Element::entry(
            [Value::Protocol(crate::nft::Protocol::Tcp), Value::Port(80)],
            [address.into(), Value::Port(8080)],
        );
        let encoded = encode(&set, [&element]).unwrap().pop_first().unwrap();
        assert_eq!(encoded.key, [6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(encoded.data, [10, 0, 0, 2, 0x1f, 0x90, 0, 0]);
        assert_eq!((length(&set.key), length(&[Field::Port])), (8, 2));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let set = Set::addresses(Field::Ipv4Address, []);
        for wrong in [
            Element::from("fd00::1".parse::<IpAddr>().unwrap()),
            Element::from("10.0.0.0/8".parse::<IpNetwork>().unwrap()),
            Element::entry([Value::Port(1)], []),
            Element::entry([], []),
            Element::entry([IpAddr::from([1, 1, 1, 1]).into()], [Value::Port(1)]),
        ] {
            assert!(encode(&set, [&wrong]).is_err(), "{wrong:?}");
        }
        let ports = Set { key: vec![Field::Port], interval: true, ..Set::default() };
        assert!(encode(&ports, [&Element::entry([Value::Port(1)], [])]).is_err());
        let set = Set::networks(Field::Ipv4Address, []);
        assert!(encode(&set, [&Element::from("fd00::/8".parse::<IpNetwork>().unwrap())]).is_err());
    }
}
