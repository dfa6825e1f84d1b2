//! Tables, chains and rules as plain values.

use super::Set;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    #[default]
    Ip,
    /// IPv6
    Ip6,
    /// both
    Inet,
    /// what bridges of this host pass on, before it is of any family; devices are the bridges' ports
    Bridge,
}

/// A table of our own: everything in it is ours, and it is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// which packets it sees
    pub family: Family,
    /// name, unique within the family
    pub name: String,
    /// sets and maps by name
    pub sets: BTreeMap<String, Set>,
    /// chains, each name once
    pub chains: Vec<Chain>,
}

/// A list of rules, tried in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// name, unique within the table
    pub name: String,
    /// where packets enter it; none: only through [`Action::Jump`]
    pub hook: Option<Hook>,
    /// the rules
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// what the chain may do
    pub kind: HookKind,
    /// where on its way a packet is seen
    pub point: HookPoint,
    /// order among the chains of the same point, lowest first (0 filter, -100 dstnat, 100 srcnat)
    pub priority: i32,
    /// what happens to packets that no rule decided on
    pub policy: Policy,
}

impl Hook {
    /// A hook whose policy is to accept.
    pub const fn new(kind: HookKind, point: HookPoint, priority: i32) -> Self {
        Hook { kind, point, priority, policy: Policy::Accept }
    }
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// let pass or drop
    Filter,
    /// translate addresses; sees the first packet of a connection only
    Nat,
    /// change what routing depends on, as the mark; output only
    Route,
}

/// Where on its way a packet is seen (nft(8), "address families").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookPoint {
    /// before routing
    Prerouting,
    /// to this host
    Input,
    /// through this host
    Forward,
    /// from this host
    Output,
    /// about to leave
    Postrouting,
}

/// What happens to packets that no rule of a base chain decided on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// they pass
    #[default]
    Accept,
    /// they are dropped
    Drop,
}

/// If all matches hold, the action is carried out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// conditions, in order; none: every packet
    pub matches: Vec<Match>,
    /// what is done
    pub action: Action,
    /// for people, shown by `nft list`; of more than 100 bytes the first are kept
    pub comment: String,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// the source address is in the prefix
    Source(IpNetwork),
    /// the source address is of the prefix's family and outside of the prefix
    NotSource(IpNetwork),
    /// the destination address is in the prefix
    Destination(IpNetwork),
    /// the destination address is of the prefix's family and outside of the prefix
    NotDestination(IpNetwork),
    /// source address (protocol, source port: what the set's key has) is in the named set
    SourceIn(String),
    /// the opposite of [`Match::SourceIn`]
    SourceNotIn(String),
    /// destination address (protocol, destination port: what the set's key has) is in the named set
    DestinationIn(String),
    /// the opposite of [`Match::DestinationIn`]
    DestinationNotIn(String),
    /// the device that the packet came in by
    Input(Interface),
    /// the packet came in by another device
    NotInput(Interface),
    /// the device that the packet goes out by
    Output(Interface),
    /// the packet goes out by another device
    NotOutput(Interface),
    /// the packet's mark, masked, equals the value
    Mark {
        /// which bits are compared
        mask: u32,
        /// what they must be
        value: u32,
    },
    /// the packet's mark, masked, differs from the value
    NotMark {
        /// which bits are compared
        mask: u32,
        /// what they must not be
        value: u32,
    },
    /// the connection is in one of the states
    Conntrack(BTreeSet<ConntrackState>),
    /// the transport protocol
    Protocol(Protocol),
    /// the transport protocol and its destination port
    DestinationPort(Protocol, u16),
    /// the destination is an address of this host (fib lookup)
    DestinationLocal,
    /// the packet is of this family; for inet tables (only IPv4 and IPv6 are such families)
    Family(Family),
}

/// A network device by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    /// the device of this name
    Named(String),
    /// all devices whose names begin so
    Prefix(String),
}

/// The state of the connection that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConntrackState {
    /// belongs to no connection that could exist
    Invalid,
    /// packets were seen in both directions
    Established,
    /// a new connection that belongs to an established one
    Related,
    /// the first packet
    New,
    /// exempt from tracking
    Untracked,
}

/// A transport protocol, with its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// ICMP
    Icmp = 1,
    /// TCP
    Tcp = 6,
    /// UDP
    Udp = 17,
    /// ICMPv6
    Icmpv6 = 58,
    /// SCTP
    Sctp = 132,
}

impl Protocol {
    /// The protocol with an IANA number, if it is one of these.
    pub(super) fn numbered(number: u8) -> Option<Self> {
        [Protocol::Icmp, Protocol::Tcp, Protocol::Udp, Protocol::Icmpv6, Protocol::Sctp]
            .into_iter()
            .find(|protocol| *protocol as u8 == number)
    }
}

/// What a rule does to a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// pass; chains of later priority still see the packet
    Accept,
    /// drop
    Drop,
    /// go on in the calling chain, or with the policy
    Return,
    /// go on in another chain of the table
    Jump(String),
    /// give it the address of the device it leaves by
    Masquerade {
        /// choose source ports at random, which avoids collisions of parallel connections
        fully_random: bool,
    },
    /// set the bits of the packet's mark that the mask covers, and go on
    SetMark {
        /// which bits are set
        mask: u32,
        /// what they become
        value: u32,
    },
    /// send it to the address (and port) that the named map has for it; packets without an entry go on
    DestinationNat {
        /// the map; its key's fields are read from the packet's destination, its data are (address) or (address, port)
        map: String,
    },
    /// count it, and go on
    Counter,
}
