//! Connection tracking through netlink (linux/netfilter/nfnetlink_conntrack.h): finds the entries of flows that an address
//! translation has outlived, and deletes them.
//!
//! A rule of a nat chain is asked for the first packet of a flow only; afterwards the entry decides. A client that goes on
//! sending keeps its entry alive, and is led to where nobody answers any more, for as long as the entry exists.

mod wire;

pub use wire::{Direction, Flow};

use crate::netlink::socket::{Message, NLM_F_DUMP, Socket};
use crate::netns::Netns;
use crate::nft::Protocol;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::net::IpAddr;

/// A connection to the connection tracking of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

/// Which flows are looked at. The kernel (5.8 and later) picks them, so that only they are copied.
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

    /// The flows of a pattern.
    pub fn flows(&mut self, pattern: &Pattern) -> Result<Vec<Flow>> {
        Ok(self.entries(pattern)?.into_iter().map(|entry| entry.flow).collect())
    }

    /// Deletes the entries of the flows of `pattern` that `select` picks, and returns their number. One that ends by itself
    /// in the meantime is not counted, and no failure.
    pub fn forget(&mut self, pattern: &Pattern, mut select: impl FnMut(&Flow) -> bool) -> Result<usize> {
        let mut doomed = self.entries(pattern)?;
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

    fn entries(&mut self, pattern: &Pattern) -> Result<Vec<wire::Entry>> {
        let message = Message { kind: wire::GET, flags: NLM_F_DUMP, payload: wire::question(pattern) };
        let found = self.socket.query(message, |found: &mut Vec<wire::Entry>, kind, payload| {
            if kind == wire::NEW {
                found.extend(wire::decode(payload).filter(|entry| pattern.covers(&entry.flow)));
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
