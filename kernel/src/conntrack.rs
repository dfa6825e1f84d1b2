//! Connection tracking through netlink (linux/netfilter/nfnetlink_conntrack.h): finds the entries of flows that an address
//! translation has outlived, and deletes them.
//!
//! A rule of a nat chain is asked for the first packet of a flow only; afterwards the entry decides. A client that goes on
//! sending keeps its entry alive, and is led to where nobody answers any more, for as long as the entry exists.

mod wire;

pub use wire::{Direction, Flow};

use crate::netlink::socket::{Message, NLM_F_ACK, NLM_F_DUMP, Socket};
use crate::netns::Netns;
use crate::nft::Protocol;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// A connection to the connection tracking of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl AsFd for Conntrack {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Which flows are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pattern {
    /// to this port of whatever address, as the client sent it, before any translation
    ToPort {
        /// family of the addresses: true is IPv4
        ipv4: bool,
        /// transport protocol
        protocol: Protocol,
        /// destination port
        port: u16,
    },
    /// answered by this address: the flows that go to it, directly or translated
    AnsweredBy(IpAddr),
}

impl Pattern {
    fn ipv4(&self) -> bool {
        match self {
            Pattern::ToPort { ipv4, .. } => *ipv4,
            Pattern::AnsweredBy(address) => address.is_ipv4(),
        }
    }

    fn covers(&self, flow: &Flow) -> bool {
        match self {
            Pattern::ToPort { ipv4, protocol, port } => {
                flow.protocol == *protocol as u8
                    && flow.original.destination_port == *port
                    && flow.original.destination.is_ipv4() == *ipv4
            }
            Pattern::AnsweredBy(address) => flow.reply.source == *address,
        }
    }
}

/// As many messages are sent at once.
const BATCH: usize = 64;
/// The kernel walks all its buckets for every list, some 10 ms on an ordinary machine, which costs more than copying this
/// many entries: up to here, one list of everything serves all patterns.
const FEW: u32 = 20_000;

impl Conntrack {
    /// Connects to the connection tracking of the namespace that the calling thread is in.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter)
            .map_err(|errno| Error::new("opening a connection tracking socket", errno))?;
        Ok(Conntrack { socket })
    }

    /// Connects to the connection tracking of `namespace`.
    pub fn open_in(namespace: &Netns) -> Result<Self> {
        let _inside = namespace.enter()?;
        Conntrack::open()
    }

    /// The flows that any of the patterns covers.
    pub fn flows(&mut self, patterns: &[Pattern]) -> Result<Vec<Flow>> {
        Ok(self.entries(patterns)?.into_iter().map(|entry| entry.flow).collect())
    }

    /// Deletes the entries of the flows that any of `patterns` covers and `select` picks, and returns their number. One that
    /// ends by itself in the meantime is not counted, and no failure.
    pub fn forget(&mut self, patterns: &[Pattern], mut select: impl FnMut(&Flow) -> bool) -> Result<usize> {
        let mut doomed = self.entries(patterns)?;
        doomed.retain(|entry| select(&entry.flow));
        let mut count = 0;
        for entries in doomed.chunks(BATCH) {
            let messages: Vec<Message> = entries.iter().map(wire::deletion).collect();
            let operation = || format!("deleting {} connection tracking entries", entries.len());
            let refusals = self.socket.batch(&messages).map_err(|refusal| failed(operation(), refusal.errno))?;
            count += entries.len() - refusals.len();
            if let Some((_, refusal)) = refusals.into_iter().find(|(_, refusal)| refusal.errno != Errno::ENOENT) {
                return Err(failed(operation(), refusal.errno).because(refusal.reason));
            }
        }
        Ok(count)
    }

    fn entries(&mut self, patterns: &[Pattern]) -> Result<Vec<wire::Entry>> {
        let mut found = Vec::new();
        match self.count()? {
            _ if patterns.is_empty() => {}
            0 => {}
            1..=FEW => found = self.list(None)?,
            _ => {
                for pattern in patterns {
                    found.extend(self.list(Some(pattern))?);
                }
            }
        }
        // A kernel before 5.8 lists more than it was asked for.
        found.retain(|entry| patterns.iter().any(|pattern| pattern.covers(&entry.flow)));
        Ok(found)
    }

    /// How many entries there are, of all kinds.
    pub fn count(&mut self) -> Result<u32> {
        // The answer claims to be one of several; the acknowledgement tells that nothing follows.
        let message = Message { kind: wire::GET_STATISTICS, flags: NLM_F_ACK, payload: wire::nothing_more() };
        let answer = self.socket.query(message, |found: &mut u32, _kind, payload| *found = wire::count(payload));
        answer.map_err(|refusal| failed("counting connection tracking entries".into(), refusal.errno))
    }

    fn list(&mut self, pattern: Option<&Pattern>) -> Result<Vec<wire::Entry>> {
        let payload = pattern.map_or_else(wire::nothing_more, wire::question);
        let message = Message { kind: wire::GET, flags: NLM_F_DUMP, payload };
        let found = self.socket.query(message, |found: &mut Vec<wire::Entry>, kind, payload| {
            if kind == wire::NEW {
                found.extend(wire::decode(payload));
            }
        });
        found.map_err(|refusal| failed("listing connection tracking entries".into(), refusal.errno))
    }
}

fn failed(operation: String, errno: Errno) -> Error {
    match errno {
        // What nfnetlink answers for a subsystem that is not there.
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            Error::new(operation, errno).because("does the kernel have nf_conntrack_netlink? load the module")
        }
        errno => Error::new(operation, errno),
    }
}

/// For the fuzz targets: no answer of the kernel may make a decoder panic.
#[cfg(fuzzing)]
pub(crate) fn decode_as_everything(payload: &[u8]) {
    let _ = (wire::count(payload), wire::decode(payload).map(|entry| wire::deletion(&entry)));
}
