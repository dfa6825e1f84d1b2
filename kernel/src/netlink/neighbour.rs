//! Neighbours: which hardware address an IP address has on a link; and forwarding database entries: behind which remote
//! end point a hardware address is. The kernel keeps both in messages of one type.

use super::socket::{Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use super::{Netlink, attributes, ip_address};
use crate::{Mac, Result};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use nix::errno::Errno;
use std::net::IpAddr;

/// An entry of the neighbour table (ARP, NDP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// index of the device
    pub index: u32,
    /// address
    pub ip: IpAddr,
    /// hardware address, if it is known
    pub mac: Option<Mac>,
    /// set by hand and kept until it is removed by hand
    pub permanent: bool,
}

/// An entry of a device's own forwarding database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// inner hardware address
    pub mac: Mac,
    /// outer destination; none for entries that point nowhere
    pub dst: Option<IpAddr>,
    /// set by hand and kept until it is removed by hand
    pub permanent: bool,
}

impl Netlink {
    /// The neighbours of both families, of one device or of all.
    pub fn neighbours(&mut self, index: Option<u32>) -> Result<Vec<Neighbour>> {
        self.fold_neighbours(index, Vec::push)
    }

    /// The same, each handed to `take`: see [`Netlink::fold`].
    pub(crate) fn fold_neighbours<T: Default>(
        &mut self,
        index: Option<u32>,
        mut take: impl FnMut(&mut T, Neighbour),
    ) -> Result<T> {
        let mut body = NeighbourMessage::default();
        body.attributes.extend(index.map(NeighbourAttribute::IfIndex));
        let message = Message::encode(libc::RTM_GETNEIGH, NLM_F_DUMP, &body);
        let is_meant = |neighbour: &Neighbour| index.is_none_or(|index| neighbour.index == index);
        self.fold(
            message,
            || "listing neighbours".into(),
            |found, payload| {
                if let Some(neighbour) = decode_neighbour(payload).filter(is_meant) {
                    take(found, neighbour);
                }
            },
        )
    }

    /// Adds or replaces a permanent neighbour.
    pub fn set_neighbour(&mut self, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
        let operation = || format!("setting neighbour {ip} to {mac} on link number {index}");
        self.request(set_neighbour_message(index, ip, mac), operation)
    }

    /// Adds or replaces a neighbour that has yet to prove itself (NUD_STALE): packets go to it at once, and the kernel asks
    /// whether it is there when it is used, so that an entry which nobody removes misleads for seconds at most.
    pub fn introduce_neighbour(&mut self, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
        let operation = || format!("setting neighbour {ip} to {mac} on link number {index}");
        self.request(neighbour_message(index, ip, mac, NeighbourState::Stale), operation)
    }

    /// Removes a neighbour; false if it was gone already.
    pub fn delete_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<bool> {
        let operation = || format!("removing neighbour {ip} from link number {index}");
        self.request_unless(delete_neighbour_message(index, ip), &[Errno::ENOENT, Errno::ENODEV], operation)
    }

    /// The forwarding database of a device that keeps one of its own, like VXLAN.
    pub fn fdb(&mut self, index: u32) -> Result<Vec<FdbEntry>> {
        self.fold_fdb(index, Vec::push)
    }

    /// The same, each handed to `take`: see [`Netlink::fold`].
    pub(crate) fn fold_fdb<T: Default>(&mut self, index: u32, mut take: impl FnMut(&mut T, FdbEntry)) -> Result<T> {
        let mut body = NeighbourMessage::default();
        body.header.family = AddressFamily::Bridge;
        body.header.ifindex = index;
        let message = Message::encode(libc::RTM_GETNEIGH, NLM_F_DUMP, &body);
        let operation = || format!("listing the forwarding database of link number {index}");
        self.fold(message, operation, |found, payload| {
            if let Some(entry) = decode_fdb(payload, index) {
                take(found, entry);
            }
        })
    }

    /// Adds or replaces a permanent forwarding entry.
    pub fn set_fdb(&mut self, index: u32, mac: Mac, dst: IpAddr) -> Result<()> {
        let operation = || format!("setting forwarding entry {mac} to {dst} on link number {index}");
        self.request(set_fdb_message(index, mac, dst), operation)
    }

    /// Removes a forwarding entry; false if it was gone already.
    pub fn delete_fdb(&mut self, index: u32, mac: Mac, dst: IpAddr) -> Result<bool> {
        let operation = || format!("removing forwarding entry {mac} to {dst} from link number {index}");
        self.request_unless(delete_fdb_message(index, mac, dst), &[Errno::ENOENT, Errno::ENODEV], operation)
    }
}

/// RTM_NEWNEIGH of a permanent neighbour
pub(crate) fn set_neighbour_message(index: u32, ip: IpAddr, mac: Mac) -> Message {
    neighbour_message(index, ip, mac, NeighbourState::Permanent)
}

fn neighbour_message(index: u32, ip: IpAddr, mac: Mac, state: NeighbourState) -> Message {
    let mut body = body(ip.into(), index);
    body.header.state = state;
    body.attributes.push(NeighbourAttribute::Destination(ip.into()));
    body.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Message::encode(libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
}

/// RTM_DELNEIGH of a neighbour
pub(crate) fn delete_neighbour_message(index: u32, ip: IpAddr) -> Message {
    let mut body = body(ip.into(), index);
    body.attributes.push(NeighbourAttribute::Destination(ip.into()));
    Message::encode(libc::RTM_DELNEIGH, 0, &body)
}

/// RTM_NEWNEIGH of a forwarding entry
pub(crate) fn set_fdb_message(index: u32, mac: Mac, dst: IpAddr) -> Message {
    let mut body = fdb_body(index, mac, dst);
    body.header.state = NeighbourState::Permanent;
    Message::encode(libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
}

/// RTM_DELNEIGH of a forwarding entry
pub(crate) fn delete_fdb_message(index: u32, mac: Mac, dst: IpAddr) -> Message {
    Message::encode(libc::RTM_DELNEIGH, 0, &fdb_body(index, mac, dst))
}

fn body(family: AddressFamily, index: u32) -> NeighbourMessage {
    let mut body = NeighbourMessage::default();
    body.header.family = family;
    body.header.ifindex = index;
    body
}

fn fdb_body(index: u32, mac: Mac, dst: IpAddr) -> NeighbourMessage {
    let mut body = body(AddressFamily::Bridge, index);
    // NTF_SELF: the device's own database, not that of a bridge it may be a port of.
    body.header.flags = NeighbourFlags::Own;
    body.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    body.attributes.push(NeighbourAttribute::Destination(dst.into()));
    body
}

/// An entry as the kernel lists it, neighbour or forwarding entry.
struct Entry {
    header: NeighbourHeader,
    destination: Option<IpAddr>,
    mac: Option<Mac>,
    permanent: bool,
}

fn decode(payload: &[u8]) -> Option<Entry> {
    let header = NeighbourHeader::parse(payload).ok()?;
    // The state is a mask, of which the type of the codec knows single bits only.
    let permanent = u16::from(header.state) & libc::NUD_PERMANENT != 0;
    let mut entry = Entry { header, destination: None, mac: None, permanent };
    for attribute in attributes(payload.get(12..)?) {
        match attribute.kind() {
            libc::NDA_DST => entry.destination = ip_address(attribute.value()),
            libc::NDA_LLADDR => entry.mac = attribute.value().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(entry)
}

pub(super) fn decode_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let entry = decode(payload)?;
    let (index, ip) = (entry.header.ifindex, entry.destination?);
    Some(Neighbour { index, ip, mac: entry.mac, permanent: entry.permanent })
}

pub(super) fn decode_fdb(payload: &[u8], index: u32) -> Option<FdbEntry> {
    let entry = decode(payload)?;
    let own = entry.header.ifindex == index && entry.header.flags.contains(NeighbourFlags::Own);
    own.then_some(FdbEntry { mac: entry.mac?, dst: entry.destination, permanent: entry.permanent })
}
