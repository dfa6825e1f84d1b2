//! What may befall a node.

use crate::cluster::{Backend, Store};
use std::fmt;

/// Something that is done to the first node behind the daemon's back, or to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// the tunnel's device is deleted
    DeviceDeleted,
    /// it gets another name
    DeviceRenamed,
    /// it is switched off
    DeviceDown,
    /// its hardware address is changed
    MacChanged,
    /// its MTU is changed
    MtuChanged,
    /// its addresses are removed
    AddressesFlushed,
    /// the routes to the peers are removed
    RoutesFlushed,
    /// the forwarding entries are removed
    ForwardingEntriesCleared,
    /// the neighbours are removed
    NeighboursCleared,
    /// all nftables tables are removed
    RulesetFlushed,
    /// the daemon's table is removed
    TableDeleted,
    /// the daemon's table loses its rules
    TableEmptied,
    /// forwarding is switched off
    ForwardingOff,
    /// the underlay interface goes down and up again, and gets its addresses and default route back. Down forgets the
    /// neighbours of the wire. Each second time or so the first question for one (ARP, or a neighbour solicitation) leaves a
    /// fraction of a millisecond before the switch's port forwards, and the kernel asks again after a second only (retrans_time of
    /// net.ipv4.neigh): the tunnel then is silent for that second as the bare wire is, and as it is under Go flannel.
    UnderlayBounced,
    /// the underlay interface gets a smaller MTU, and later the usual one again
    UnderlayMtuChanged,
    /// the underlay interface is replaced by another one of the same name
    UnderlayReplaced,
    /// the node gets another address
    AddressChanged,
    /// the peer gets another address
    PeerMoved,
    /// the peer's machine is replaced by one of the same name, with other addresses and nothing on it
    PeerReplaced,
    /// another node takes the node's subnets, so that it needs others
    SubnetTaken,
}

impl Fault {
    /// All of them, the gentle ones first.
    pub const ALL: [Fault; 20] = [
        Fault::RoutesFlushed,
        Fault::NeighboursCleared,
        Fault::ForwardingEntriesCleared,
        Fault::AddressesFlushed,
        Fault::DeviceDown,
        Fault::MtuChanged,
        Fault::MacChanged,
        Fault::DeviceRenamed,
        Fault::DeviceDeleted,
        Fault::RulesetFlushed,
        Fault::TableDeleted,
        Fault::TableEmptied,
        Fault::ForwardingOff,
        Fault::UnderlayMtuChanged,
        Fault::UnderlayBounced,
        Fault::UnderlayReplaced,
        Fault::AddressChanged,
        Fault::PeerMoved,
        Fault::PeerReplaced,
        Fault::SubnetTaken,
    ];

    /// Whether there is anything that it could break. Leases in etcd are flannel's and have no node's name: a machine that
    /// is replaced is another node there.
    pub fn applies(self, backend: Backend, store: Store) -> bool {
        let device = matches!(
            self,
            Fault::DeviceDeleted
                | Fault::DeviceRenamed
                | Fault::DeviceDown
                | Fault::MacChanged
                | Fault::MtuChanged
                | Fault::AddressesFlushed
                | Fault::ForwardingEntriesCleared
                | Fault::NeighboursCleared
        );
        (backend == Backend::Vxlan || !device) && (store == Store::File || self != Fault::PeerReplaced)
    }

    /// Whether it strikes one family only, so that the other must not notice.
    pub fn is_of_one_family(self, backend: Backend) -> bool {
        let other =
            matches!(self, Fault::RoutesFlushed | Fault::TableDeleted | Fault::TableEmptied | Fault::ForwardingOff);
        let underlay = matches!(
            self,
            Fault::UnderlayBounced
                | Fault::UnderlayMtuChanged
                | Fault::UnderlayReplaced
                | Fault::AddressChanged
                | Fault::PeerMoved
                | Fault::PeerReplaced
                | Fault::SubnetTaken
                | Fault::RulesetFlushed
        );
        other || (backend == Backend::Vxlan && !underlay)
    }

    /// Whether it interrupts the wire itself, and both ends know each other as before once it is whole again.
    pub(super) fn strikes_the_wire(self) -> bool {
        matches!(self, Fault::UnderlayBounced | Fault::UnderlayReplaced)
    }

    /// Whether what is right afterwards is not what was right before.
    pub(super) fn changes_the_state(self) -> bool {
        matches!(
            self,
            Fault::AddressChanged
                | Fault::PeerMoved
                | Fault::PeerReplaced
                | Fault::UnderlayMtuChanged
                | Fault::SubnetTaken
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::DeviceDeleted => "device deleted",
            Fault::DeviceRenamed => "device renamed",
            Fault::DeviceDown => "device brought down",
            Fault::MacChanged => "device's MAC address changed",
            Fault::MtuChanged => "device's MTU changed",
            Fault::AddressesFlushed => "device's addresses flushed",
            Fault::RoutesFlushed => "routes flushed",
            Fault::ForwardingEntriesCleared => "forwarding entries cleared",
            Fault::NeighboursCleared => "neighbours cleared",
            Fault::RulesetFlushed => "nft ruleset flushed",
            Fault::TableDeleted => "nft table deleted",
            Fault::TableEmptied => "nft table emptied",
            Fault::ForwardingOff => "forwarding switched off",
            Fault::UnderlayBounced => "underlay interface bounced",
            Fault::UnderlayMtuChanged => "underlay's MTU changed",
            Fault::UnderlayReplaced => "underlay interface deleted and made anew",
            Fault::AddressChanged => "node's address changed",
            Fault::PeerMoved => "peer's address changed",
            Fault::PeerReplaced => "peer replaced under its name",
            Fault::SubnetTaken => "own subnet changed",
        })
    }
}
