//! Leases: which node holds which subnets, and what its peers must know of it.

mod wire;

use crate::family::PerFamily;
use ipnetwork::IpNetwork;
use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) use wire::parse_cidr;
pub use wire::{MAX_VALUE_BYTES, Malformed, parse_key};

/// The subnets of one lease, at least one, without host bits. They are its identity.
pub type Subnets = PerFamily<IpNetwork>;

/// What a node tells its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// flannel's name of the backend, such as `vxlan`; empty for `udp` and `alloc`, which flannel does not name
    pub backend_type: String,
    /// how the node is reached over each family
    pub endpoints: PerFamily<Endpoint>,
}

/// How a node is reached over one family of the underlay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// underlay address that peers send to
    pub public_ip: IpAddr,
    /// the backend's own data for the pod subnet of this family: JSON text without white space, as on the wire
    pub data: Option<String>,
}

/// One node's hold on its subnets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    /// the pod subnets, by family
    pub subnets: Subnets,
    /// what the node says of itself
    pub announcement: Announcement,
}

impl Lease {
    /// The key of this lease in a store, see [`key`].
    pub fn key(&self) -> String {
        key(&self.subnets)
    }
}

impl fmt::Display for Lease {
    /// `10.5.52.0/24 of 192.168.0.1`
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subnets: Vec<_> = self.subnets.iter().map(|(_, subnet)| subnet.to_string()).collect();
        let nodes: Vec<_> =
            self.announcement.endpoints.iter().map(|(_, endpoint)| endpoint.public_ip.to_string()).collect();
        write!(out, "{} of {}", subnets.join(" and "), nodes.join(" and "))
    }
}

impl Announcement {
    /// The address by which flannel recognises a node: IPv4 before IPv6.
    pub fn public_ip(&self) -> Option<IpAddr> {
        self.endpoints.iter().next().map(|(_, endpoint)| endpoint.public_ip)
    }

    /// Both are surely by the same node: they give the same address first, or the same backend data (a VTEP's MAC address or
    /// a public key, which are unique). Data alone lets a node keep its subnets when its address changes.
    pub fn is_same_node(&self, other: &Self) -> bool {
        let data =
            |announcement: &Self| announcement.endpoints.map(|_, endpoint| endpoint.data.clone().unwrap_or_default());
        let (ours, theirs) = (data(self), data(other));
        let same_data = ours == theirs && ours.iter().any(|(_, text)| !text.is_empty());
        let same_address = self.public_ip().is_some() && self.public_ip() == other.public_ip();
        same_address || (same_data && self.backend_type == other.backend_type)
    }
}

/// All leases of a store at one moment, in the order of their subnets. Copies share the leases: they are small, since one is
/// made for each change of a large cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTable(Vec<Arc<Lease>>);

impl LeaseTable {
    /// Puts a lease in, in place of the one of the same subnets, which is returned.
    pub fn insert(&mut self, lease: impl Into<Arc<Lease>>) -> Option<Arc<Lease>> {
        let lease = lease.into();
        match self.place(&lease.subnets) {
            Ok(at) => self.0.get_mut(at).map(|present| std::mem::replace(present, lease)),
            Err(at) => {
                self.0.insert(at, lease);
                None
            }
        }
    }

    /// Takes the lease of these subnets out.
    pub fn remove(&mut self, subnets: &Subnets) -> Option<Arc<Lease>> {
        self.place(subnets).ok().map(|at| self.0.remove(at))
    }

    /// The lease of exactly these subnets.
    pub fn get(&self, subnets: &Subnets) -> Option<&Lease> {
        self.0.get(self.place(subnets).ok()?).map(Arc::as_ref)
    }

    /// Where the lease of these subnets is, or else would be.
    fn place(&self, subnets: &Subnets) -> Result<usize, usize> {
        self.0.binary_search_by(|lease| lease.subnets.cmp(subnets))
    }

    /// All leases, ordered by subnet.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.0.iter().map(Arc::as_ref)
    }

    /// The leases that are here and not in `later`, and those that are there and not here. One that was changed is in both.
    pub fn changes_to(&self, later: &Self) -> (Self, Self) {
        let (mut gone, mut new) = (Self::default(), Self::default());
        let (mut here, mut there) = (self.0.iter().peekable(), later.0.iter().peekable());
        loop {
            let order = match (here.peek(), there.peek()) {
                // Nearly all are shared, and need no look.
                (Some(one), Some(other)) if Arc::ptr_eq(one, other) => Ordering::Equal,
                (Some(one), Some(other)) => one.subnets.cmp(&other.subnets),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return (gone, new),
            };
            let old = if order.is_le() { here.next() } else { None };
            let now = if order.is_ge() { there.next() } else { None };
            if old != now {
                gone.0.extend(old.cloned());
                new.0.extend(now.cloned());
            }
        }
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is no lease.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Lease> for LeaseTable {
    fn from_iter<I: IntoIterator<Item = Lease>>(leases: I) -> Self {
        let mut all: Vec<_> = leases.into_iter().map(Arc::new).collect();
        // Of several with the same subnets the last one counts, as if they were put in one after the other.
        all.reverse();
        all.sort_by_key(|lease| lease.subnets);
        all.dedup_by_key(|lease| lease.subnets);
        all.shrink_to_fit();
        Self(all)
    }
}

/// The last part of a lease's key, as flannel writes it: `10.5.52.0-24`, `10.5.52.0-24&fd00:0:0:5::-64`; and, for IPv6 only,
/// `fd00:0:0:5::-64`, which flannel has no form for and skips.
pub fn key(subnets: &Subnets) -> String {
    let parts: Vec<_> = subnets.iter().map(|(_, subnet)| format!("{}-{}", subnet.network(), subnet.prefix())).collect();
    parts.join("&")
}

/// Two subnets have addresses in common.
pub fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}
