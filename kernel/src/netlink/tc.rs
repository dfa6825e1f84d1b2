//! Messages of traffic control (linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h), put together by hand: the message
//! library knows neither token buckets nor classless ingress. Numbers are in host order.

use super::socket::Message;

const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
/// Size of struct tcmsg, which every message begins with.
const HEADER: usize = 20;

/// Where in a device something hangs (tcm_parent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// what leaves it (TC_H_ROOT)
    Egress,
    /// what comes in by it, before anything else in the kernel sees it (TC_H_INGRESS)
    Ingress,
    /// the filters of the latter
    IngressFilters,
}

impl Place {
    fn parent(self) -> u32 {
        match self {
            Place::Egress => 0xffff_ffff,
            Place::Ingress => 0xffff_fff1,
            Place::IngressFilters => INGRESS_HANDLE,
        }
    }

    /// The handle of what is made there; 0 lets the kernel choose.
    fn handle(self) -> u32 {
        if self == Place::Ingress { INGRESS_HANDLE } else { 0 }
    }
}

/// By convention, and by TC_H_MAKE(TC_H_INGRESS, 0) in the kernel's own lookups: ffff:0.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// A message about `place` of the device `index`. `info` is a filter's priority and protocol, else 0.
pub(super) fn message(kind: u16, flags: u16, index: u32, place: Place, info: u32, attributes: &[Vec<u8>]) -> Message {
    let mut payload = vec![0; 4];
    for number in [index, place.handle(), place.parent(), info] {
        payload.extend_from_slice(&number.to_ne_bytes());
    }
    payload.extend(attributes.concat());
    Message { kind, flags, payload }
}

/// What sort of queue or filter.
pub(super) fn kind(name: &str) -> Vec<u8> {
    attribute(TCA_KIND, &[name.as_bytes(), &[0]].concat())
}

/// Its settings, themselves attributes.
pub(super) fn options(inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(TCA_OPTIONS, &inner.concat())
}

/// One attribute with its padding. All that is sent here is a few dozen bytes long.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(0);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What the kernel tells of a queue or filter.
pub(super) struct Described<'a> {
    /// index of the device
    pub(super) index: u32,
    /// tcm_parent
    parent: u32,
    /// what sort, without the NUL
    pub(super) kind: &'a [u8],
    /// its settings
    pub(super) options: &'a [u8],
}

impl<'a> Described<'a> {
    /// Reads the payload of an RTM_NEWQDISC or RTM_NEWTFILTER.
    pub(super) fn read(payload: &'a [u8]) -> Option<Self> {
        let (header, attributes) = payload.split_at_checked(HEADER)?;
        let kind = find(attributes, TCA_KIND)?;
        Some(Described {
            index: number(header, 4)?,
            parent: number(header, 12)?,
            kind: kind.strip_suffix(&[0]).unwrap_or(kind),
            options: find(attributes, TCA_OPTIONS).unwrap_or_default(),
        })
    }

    /// Whether it is there.
    pub(super) fn is_at(&self, place: Place) -> bool {
        self.parent == place.parent()
    }
}

/// The value of the first attribute of type `kind`, nested or not.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = bytes;
    loop {
        let [a, b, c, d] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The 32 bits at `offset`.
pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
