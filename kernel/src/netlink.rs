//! A small synchronous netlink socket and the kernel nouns spoken over it.

mod address;
pub(crate) mod attribute;
mod bridge;
mod ethtool;
mod filter;
mod ifb;
mod ipip;
mod link;
mod neighbour;
#[cfg(feature = "watch")]
mod notice;
mod qdisc;
mod route;
pub mod socket;
mod tc;
mod tun;
mod veth;
mod vxlan;
mod wireguard;

pub use address::AddressEntry;
pub(crate) use address::{add_address_message, delete_address_message};
pub use ipip::IpipAttributes;
pub(crate) use link::delete_link_message;
pub use link::{Link, LinkChange, LinkKind};
pub use neighbour::{FdbEntry, Neighbour};
pub(crate) use neighbour::{delete_fdb_message, delete_neighbour_message, set_fdb_message, set_neighbour_message};
#[cfg(feature = "watch")]
pub(crate) use notice::Notice;
pub use qdisc::TokenBucket;
pub use route::{RouteEntry, RouteKind, RouteSpec};
pub(crate) use route::{delete_route_message, route_message};
pub use veth::VethSpec;
pub use vxlan::VxlanAttributes;

use crate::netns::{Guard, Netns};
use crate::{Error, Result, Tunnel};
use netlink_packet_core::{NlaBuffer, NlasIterator};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use socket::{Message, Refusal, Socket};
use std::net::IpAddr;

/// A connection to the kernel's links, addresses, routes and neighbours (rtnetlink(7)) of one network namespace: the one
/// it was opened in, wherever its thread goes afterwards.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    netns: Netns,
}

impl Netlink {
    /// Connects in the namespace of the calling thread.
    pub fn open() -> Result<Self> {
        Ok(Netlink { socket: open_socket(0)?, netns: Netns::current()? })
    }

    /// Connects in `netns`; the calling thread is back in its own when this returns.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        let _inside = netns.enter()?;
        Ok(Netlink { socket: open_socket(0)?, netns: netns.try_clone()? })
    }

    /// The namespace of this connection.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Moves the thread into the namespace of this connection, or not at all if it is there already: that would take a
    /// privilege (CAP_SYS_ADMIN) that a daemon in its own namespace need not have.
    pub(crate) fn enter(&self) -> Result<Option<Guard>> {
        if Netns::current()?.id() == self.netns.id() { Ok(None) } else { self.netns.enter().map(Some) }
    }

    /// Makes a device of an overlay, marks it with `alias` and switches it on. It ignores router advertisements and gets no
    /// IPv6 link-local address.
    pub fn create_tunnel(&mut self, name: &str, tunnel: &Tunnel, alias: &str) -> Result<()> {
        match tunnel {
            Tunnel::Vxlan(link) => self.create_vxlan(name, link, alias),
            Tunnel::Ipip(link) => self.create_ipip(name, link, alias),
            Tunnel::Tun(link) => self.create_tun(name, link, alias),
            Tunnel::WireGuard(link) => self.create_wireguard(name, link, alias),
        }
    }

    /// Carries out one request.
    fn request(&mut self, message: Message, operation: impl FnOnce() -> String) -> Result<()> {
        self.socket.request(message).map_err(|refusal| refused(operation(), refusal))
    }

    /// Carries out one request; false if it was refused with one of the errnos that say that it is `done` already.
    fn request_unless(&mut self, message: Message, done: &[Errno], operation: impl FnOnce() -> String) -> Result<bool> {
        match self.socket.request(message) {
            Ok(()) => Ok(true),
            Err(refusal) if done.contains(&refusal.errno) => Ok(false),
            Err(refusal) => Err(refused(operation(), refusal)),
        }
    }

    /// Carries out up to 64 requests in one system call and returns the refusals by index.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> std::result::Result<Vec<(usize, Refusal)>, Refusal> {
        self.socket.batch(messages)
    }

    /// Everything that the kernel answers to a question and that `decode` takes.
    fn query<T>(
        &mut self,
        message: Message,
        operation: impl FnOnce() -> String,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.fold(message, operation, |found: &mut Vec<T>, payload| found.extend(decode(payload)))
    }

    /// The same, each answer handed to `take` as it comes: what thousands of them are needed for is kept, and not they. Begins
    /// anew, with another `T`, where the kernel says that something was changed meanwhile.
    fn fold<T: Default>(
        &mut self,
        message: Message,
        operation: impl FnOnce() -> String,
        mut take: impl FnMut(&mut T, &[u8]),
    ) -> Result<T> {
        let each = |found: &mut T, _kind, payload: &[u8]| take(found, payload);
        self.socket.query(message, each).map_err(|refusal| refused(operation(), refusal))
    }
}

pub(crate) fn open_socket(groups: u32) -> Result<Socket> {
    Socket::subscribe(SockProtocol::NetlinkRoute, groups)
        .map_err(|errno| Error::new("opening a route netlink socket", errno))
}

pub(crate) fn refused(operation: String, refusal: Refusal) -> Error {
    Error::new(operation, refusal.errno).because(refusal.reason)
}

/// The attributes in `bytes`, up to the first that is malformed. Only those that are wanted get decoded, so that an
/// attribute of a newer kernel cannot make an object unreadable.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(std::result::Result::ok)
}

/// An address from its bytes in network order; the number of bytes is the family.
fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// What anybody may be told by the kernel, whatever was asked for: for tests only, that no answer makes a decoder panic.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_as_everything(flags: u16, payload: &[u8]) {
    let _ = link::decode(payload);
    let _ = address::decode(payload);
    let _ = neighbour::decode_neighbour(payload);
    let _ = neighbour::decode_fdb(payload, 1);
    let _ = route::decode_entry(payload, IpAddr::from([0, 0, 0, 0]));
    let _ = socket::refusal(flags, payload);
    let _ = VxlanAttributes::decode(payload);
    let _ = IpipAttributes::decode(payload);
    let _ = tun::decode(payload);
    let _ = qdisc::decode(payload);
    let _ = filter::decode(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A header followed by attributes that are well formed at the outside at least.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let attribute = (0u16..64, vec(any::<u8>(), 0..40)).prop_map(|(kind, value)| {
            let length = value.len() as u16 + 4;
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        });
        let header =
            prop_oneof![Just(8), Just(12), Just(16), Just(20), 0usize..20].prop_flat_map(|size| vec(any::<u8>(), size));
        (header, vec(attribute, 0..8), vec(any::<u8>(), 0..6))
            .prop_map(|(header, attributes, rest)| [header, attributes.concat(), rest].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn no_message_makes_a_decoder_panic(payload in payload(), flags in any::<u16>()) {
            decode_as_everything(flags, &payload);
        }
    }

    #[test]
    fn the_kernels_own_words_are_read() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        payload.extend([10, 0, 1, 0]);
        payload.extend(b"wrong\0\0\0");
        let (capped, tlvs) = (0x100, 0x200);
        let refusal = socket::refusal(capped | tlvs, &payload).unwrap();
        assert_eq!((refusal.errno, refusal.reason.as_str()), (Errno::EINVAL, "wrong"));
        assert_eq!(socket::refusal(capped, &payload).unwrap().reason, "");
        assert_eq!(socket::refusal(0, &0i32.to_ne_bytes()), None);
    }
}
