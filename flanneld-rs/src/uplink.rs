//! The underlay: over which interface the packets of each family leave this node for the others, decided from a snapshot of the
//! kernel's tables. The families do not depend on each other, and may use different interfaces.

mod choice;
mod tables;

use crate::family::{Family, PerFamily};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

pub use choice::Choice;
pub use tables::Tables;

/// This node's place among the others, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// how packets of a family leave for the other nodes
    pub ways: PerFamily<Way>,
}

/// The interface of one family, and this node's addresses on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// name of the interface
    pub interface: String,
    /// its MTU in bytes
    pub mtu: u32,
    /// the address on it that packets leave from
    pub local: IpAddr,
    /// the address by which other nodes reach this one; usually `local`
    pub public: IpAddr,
    /// this node has no such address: somebody on the way translates it
    pub translated: bool,
    /// the prefixes that are reached over it without a gateway
    pub on_link: Vec<IpNetwork>,
    /// names of the drivers of the interface and of those below it, such as the cards of a bond
    pub drivers: BTreeSet<String>,
}

/// An uplink, and what is to be said of how it came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// the uplink; a family that has no way is missing
    pub uplink: Uplink,
    /// why each way was taken
    pub reasons: PerFamily<String>,
    /// what keeps each of the other families from having one
    pub lacking: PerFamily<String>,
    /// all interfaces with their addresses, in one line
    pub candidates: String,
}

impl Uplink {
    /// The address that packets of a family leave from.
    pub fn local(&self, family: Family) -> Option<IpAddr> {
        self.ways.get(family).map(|way| way.local)
    }

    /// The address by which other nodes reach this one.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        self.ways.get(family).map(|way| way.public)
    }

    /// The way of the family of `address`, if `address` is reached over it without a gateway.
    pub fn directly(&self, address: IpAddr) -> Option<&Way> {
        let way = self.ways.get(Family::of(address))?;
        way.on_link.iter().any(|prefix| prefix.contains(address)).then_some(way)
    }

    /// The smallest MTU of the ways of these families, in bytes. A family that has none yet counts as the other one does, so
    /// that pods need not follow when it gets one.
    pub fn mtu(&self, families: &[Family]) -> u32 {
        let any = self.ways.iter().next().map_or(ETHERNET, |(_, way)| way.mtu);
        let of = |family: &Family| self.ways.get(*family).map_or(any, |way| way.mtu);
        families.iter().map(of).min().unwrap_or(any)
    }

    /// This, and the ways of `before` for those families that have none now: an interface that bounces gets its addresses back
    /// in a moment, and nothing is torn down for it.
    #[must_use]
    pub fn remembering(mut self, before: &Uplink) -> Self {
        for (family, way) in before.ways.iter() {
            if self.ways.get(family).is_none() {
                self.ways.set(family, way.clone());
            }
        }
        self
    }
}

/// What is assumed of an interface that nobody has seen (RFC 894).
const ETHERNET: u32 = 1500;

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (MTU {}), address {}", self.interface, self.mtu, self.local)?;
        if self.public != self.local {
            write!(out, ", to others {}", self.public)?;
        }
        if self.translated {
            out.write_str(", which somebody on the way translates")?;
        }
        Ok(())
    }
}
