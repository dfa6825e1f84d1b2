//! What notifications tell: objects in the form in which the kernel lists them.

use super::{FdbEntry, Link, Neighbour, RouteEntry, address, attributes, link, neighbour, route};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Reads the payloads of notifications, without their headers. None: it is about something else, or malformed.
pub(crate) struct Notice;

impl Notice {
    pub(crate) fn link(payload: &[u8]) -> Option<Link> {
        link::decode(payload)
    }

    /// An address, with the index of its device.
    pub(crate) fn address(payload: &[u8]) -> Option<(u32, IpNetwork)> {
        address::decode(payload)
    }

    /// A route that is no cached one.
    pub(crate) fn route(payload: &[u8]) -> Option<RouteEntry> {
        let family = match i32::from(*payload.first()?) {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        route::decode(payload, family)
    }

    pub(crate) fn neighbour(payload: &[u8]) -> Option<Neighbour> {
        neighbour::decode_neighbour(payload)
    }

    /// An entry of a device's own forwarding database, with the index of the device.
    pub(crate) fn forwarding_entry(payload: &[u8]) -> Option<(u32, FdbEntry)> {
        let index = payload.get(4..8).and_then(|index| index.first_chunk()).map(|index| u32::from_ne_bytes(*index))?;
        Some((index, neighbour::decode_fdb(payload, index)?))
    }

    /// The value of an attribute of four bytes.
    pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<[u8; 4]> {
        attributes(bytes).find(|attribute| attribute.kind() == kind)?.value().try_into().ok()
    }
}
