//! Addresses on links.

use super::socket::{Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use super::{Netlink, attributes, ip_address};
use crate::Result;
use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage};
use nix::errno::Errno;

/// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// An address of a device, with what the kernel says of its future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// index of the device
    pub index: u32,
    /// the address with its prefix
    pub address: IpNetwork,
    /// somebody else on the link has it too (IPv6): packets cannot leave from it
    pub failed: bool,
    /// it is meant to stay: neither temporary nor deprecated nor still being tried out, and no secondary one of its network
    pub lasting: bool,
    /// it has a lifetime, as those that routers and DHCP servers give
    pub ends: bool,
}

impl Netlink {
    /// All addresses of both families, each device's in the kernel's order.
    pub fn address_entries(&mut self) -> Result<Vec<AddressEntry>> {
        let message = Message::encode(libc::RTM_GETADDR, NLM_F_DUMP, &AddressMessage::default());
        self.query(message, || "listing addresses".into(), decode_entry)
    }

    /// All addresses of both families with the index of their device.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpNetwork)>> {
        self.list_addresses(0, || "listing addresses".into())
    }

    /// The addresses of one device.
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<IpNetwork>> {
        let mut found = self.list_addresses(index, || format!("listing addresses of link number {index}"))?;
        found.retain(|(device, _)| *device == index);
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    fn list_addresses(&mut self, index: u32, operation: impl FnOnce() -> String) -> Result<Vec<(u32, IpNetwork)>> {
        let mut body = AddressMessage::default();
        body.header.index = index;
        self.query(Message::encode(libc::RTM_GETADDR, NLM_F_DUMP, &body), operation, decode)
    }

    /// Adds an address; having it already is success. There is no duplicate detection of IPv6: the address can be bound to
    /// at once. What is sent to it arrives a moment later, when the kernel's work queue has made the local route
    /// (`addrconf_dad_work`), which [`Netlink::lookup`] shows.
    pub fn add_address(&mut self, index: u32, address: IpNetwork) -> Result<()> {
        let operation = || format!("adding address {address} to link number {index}");
        self.request_unless(add_address_message(index, address), &[Errno::EEXIST], operation).map(drop)
    }

    /// Removes an address; false if it was gone already.
    pub fn delete_address(&mut self, index: u32, address: IpNetwork) -> Result<bool> {
        let gone = [Errno::EADDRNOTAVAIL, Errno::ENOENT, Errno::ENODEV];
        let operation = || format!("removing address {address} from link number {index}");
        self.request_unless(delete_address_message(index, address), &gone, operation)
    }
}

/// RTM_NEWADDR
pub(crate) fn add_address_message(index: u32, address: IpNetwork) -> Message {
    Message::encode(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body(index, address, AddressHeaderFlags::Nodad))
}

/// RTM_DELADDR
pub(crate) fn delete_address_message(index: u32, address: IpNetwork) -> Message {
    Message::encode(libc::RTM_DELADDR, 0, &body(index, address, AddressHeaderFlags::empty()))
}

fn body(index: u32, address: IpNetwork, ipv6_flags: AddressHeaderFlags) -> AddressMessage {
    let mut body = AddressMessage::default();
    body.header.family = address.ip().into();
    body.header.index = index;
    body.header.prefix_len = address.prefix();
    // IPv4 has no duplicate detection that could be skipped.
    body.header.flags = if address.is_ipv6() { ipv6_flags } else { AddressHeaderFlags::empty() };
    // Local is the address, Address that of a point-to-point peer: the same one where there is no such peer.
    body.attributes.extend([AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())]);
    // The kernel does not derive it, and programs that ask an interface for it (SIOCGIFBRDADDR) want one. Links of two
    // addresses have none (RFC 3021).
    if let IpNetwork::V4(address) = address
        && address.prefix() < 31
    {
        body.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
    }
    body
}

fn decode_entry(payload: &[u8]) -> Option<AddressEntry> {
    let (index, address) = decode(payload)?;
    let flags = AddressHeader::parse(payload).ok()?.flags;
    // To IPv4, the flag of temporary addresses says that it is a secondary one (linux/if_addr.h).
    let passing = AddressHeaderFlags::Secondary | AddressHeaderFlags::Deprecated | AddressHeaderFlags::Tentative;
    let failed = flags.contains(AddressHeaderFlags::Dadfailed);
    let ends = !flags.contains(AddressHeaderFlags::Permanent);
    Some(AddressEntry { index, address, failed, lasting: !flags.intersects(passing), ends })
}

pub(super) fn decode(payload: &[u8]) -> Option<(u32, IpNetwork)> {
    let header = AddressHeader::parse(payload).ok()?;
    let (mut local, mut address) = (None, None);
    for attribute in attributes(payload.get(8..)?) {
        match attribute.kind() {
            IFA_LOCAL => local = ip_address(attribute.value()),
            IFA_ADDRESS => address = ip_address(attribute.value()),
            _ => {}
        }
    }
    let network = IpNetwork::new(local.or(address)?, header.prefix_len).ok()?;
    Some((header.index, network))
}
