//! Entries as messages.

use super::Pattern;
use crate::netlink::attribute::{Attributes, attributes, find, number};
use crate::netlink::socket::Message;
use std::net::IpAddr;

/// NFNL_SUBSYS_CTNETLINK, shifted.
const SUBSYSTEM: u16 = 1 << 8;
/// IPCTNL_MSG_CT_NEW, _GET, _DELETE, _GET_STATS.
pub(super) const NEW: u16 = SUBSYSTEM;
pub(super) const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
pub(super) const GET_STATISTICS: u16 = SUBSYSTEM | 5;

/// enum ctattr_type
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// CTA_STATS_GLOBAL_ENTRIES
const ENTRIES: u16 = 1;
/// enum ctattr_tuple
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// enum ctattr_ip: source and destination of either family
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
/// enum ctattr_l4proto
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// enum ctattr_filter, and which parts of a tuple are compared (CTA_FILTER_FLAG in net/netfilter/nf_internals.h)
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const COMPARE_SOURCE: u32 = 1 << 0;
const COMPARE_PROTOCOL: u32 = 1 << 3;
const COMPARE_DESTINATION_PORT: u32 = 1 << 5;

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// number of the transport protocol
    pub protocol: u8,
    /// as the client sends
    pub original: Direction,
    /// as the answers come in, before they are translated back
    pub reply: Direction,
}

/// One direction of a flow. Ports are 0 where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direction {
    /// source address
    pub source: IpAddr,
    /// destination address
    pub destination: IpAddr,
    /// source port
    pub source_port: u16,
    /// destination port
    pub destination_port: u16,
}

/// An entry: a flow, and what names it to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) flow: Flow,
    family: u8,
    /// the attributes by which the kernel finds it, as it sent them
    name: Attributes,
}

/// The body of a dump of what `pattern` covers. A kernel that does not know the filter lists more.
pub(super) fn question(pattern: &Pattern) -> Vec<u8> {
    let head = Attributes::after(&header(if pattern.ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8));
    let flags = |kind: u16, bits: u32| Attributes::new().bytes(kind, &bits.to_ne_bytes());
    match pattern {
        Pattern::ToPort { protocol, port, .. } => {
            let transport =
                Attributes::new().bytes(NUMBER, &[*protocol as u8]).bytes(DESTINATION_PORT, &port.to_be_bytes());
            let compared = flags(FILTER_ORIGINAL, COMPARE_PROTOCOL | COMPARE_DESTINATION_PORT);
            head.nested(TUPLE_ORIGINAL, Attributes::new().nested(TUPLE_PROTOCOL, transport)).nested(FILTER, compared)
        }
        Pattern::AnsweredBy(address) => {
            let source = match address {
                IpAddr::V4(address) => Attributes::new().bytes(V4_SOURCE, &address.octets()),
                IpAddr::V6(address) => Attributes::new().bytes(V6_SOURCE, &address.octets()),
            };
            let tuple = Attributes::new().nested(TUPLE_IP, source);
            head.nested(TUPLE_REPLY, tuple).nested(FILTER, flags(FILTER_REPLY, COMPARE_SOURCE))
        }
    }
    .finish()
}

/// The body of a question about all families.
pub(super) fn nothing_more() -> Vec<u8> {
    header(libc::AF_UNSPEC as u8).to_vec()
}

/// The number in the answer to [`GET_STATISTICS`]; many if there is none.
pub(super) fn count(payload: &[u8]) -> u32 {
    payload.get(4..).and_then(|body| number(body, ENTRIES)).unwrap_or(u32::MAX)
}

/// The deletion of an entry, and of no other that has the same addresses by then.
pub(super) fn deletion(entry: &Entry) -> Message {
    let payload = [&header(entry.family)[..], &entry.name.clone().finish()].concat();
    Message { kind: DELETE, flags: 0, payload }
}

/// The entry in a message; none if it is of a protocol without addresses or malformed.
pub(super) fn decode(payload: &[u8]) -> Option<Entry> {
    let family = *payload.first()?;
    let body = payload.get(4..)?;
    let (protocol, original) = tuple(find(body, TUPLE_ORIGINAL)?)?;
    let (_, reply) = tuple(find(body, TUPLE_REPLY)?)?;
    let naming = attributes(body).filter(|(kind, _)| matches!(*kind, TUPLE_ORIGINAL | ID | ZONE));
    let name = naming.fold(Attributes::new(), |name, (kind, value)| match kind {
        TUPLE_ORIGINAL => name.nested_bytes(kind, value),
        _ => name.bytes(kind, value),
    });
    Some(Entry { flow: Flow { protocol, original, reply }, family, name })
}

fn tuple(bytes: &[u8]) -> Option<(u8, Direction)> {
    let (network, transport) = (find(bytes, TUPLE_IP)?, find(bytes, TUPLE_PROTOCOL)?);
    let address = |v4: u16, v6: u16| match (find(network, v4), find(network, v6)) {
        (Some(bytes), _) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        (None, Some(bytes)) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        (None, None) => None,
    };
    let port = |kind| find(transport, kind).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b));
    let direction = Direction {
        source: address(V4_SOURCE, V6_SOURCE)?,
        destination: address(V4_DESTINATION, V6_DESTINATION)?,
        source_port: port(SOURCE_PORT),
        destination_port: port(DESTINATION_PORT),
    };
    Some((*find(transport, NUMBER)?.first()?, direction))
}

/// struct nfgenmsg
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn no_message_makes_the_decoder_panic(payload in vec(any::<u8>(), 0..120)) {
            let _ = decode(&payload);
        }

        #[test]
        fn nor_one_with_an_entry_s_outline(network in vec(any::<u8>(), 0..40), transport in vec(any::<u8>(), 0..40)) {
            let inner = Attributes::new().bytes(TUPLE_IP, &network).bytes(TUPLE_PROTOCOL, &transport);
            let payload = Attributes::after(&header(2)).nested(TUPLE_ORIGINAL, inner.clone()).nested(TUPLE_REPLY, inner);
            let _ = decode(&payload.finish());
        }
    }
}
