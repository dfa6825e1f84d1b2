//! Which interface each family takes: flannel's flags, in flannel's order, for each family by itself.

use super::{Chosen, Tables, Uplink, Way};
use crate::family::{Family, PerFamily};
use crate::options::Options;
use kernel::netlink::{AddressEntry, Link, RouteKind};
use regex_lite::Regex;
use std::fmt;
use std::net::IpAddr;

/// The main routing table (linux/rtnetlink.h: RT_TABLE_MAIN).
const MAIN_TABLE: u32 = 254;
/// As many interfaces are told as fit in a line.
const TOLD: usize = 12;

/// What the operator said about the interface.
#[derive(Clone, Debug)]
pub struct Choice {
    names: Vec<String>,
    patterns: Vec<Regex>,
    can_reach: Vec<IpAddr>,
    public: PerFamily<IpAddr>,
}

/// One way to find an interface.
#[derive(Clone, Copy, Debug)]
enum Hint<'a> {
    Name(&'a str),
    Address(IpAddr),
    Pattern(&'a Regex),
    Reach(IpAddr),
    Public(IpAddr),
    DefaultRoute(Family),
}

impl fmt::Display for Hint<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::Name(name) => write!(out, "--iface {name}"),
            Hint::Address(address) => write!(out, "--iface {address}"),
            Hint::Pattern(pattern) => write!(out, "--iface-regex {}", pattern.as_str()),
            Hint::Reach(address) => write!(out, "--iface-can-reach {address}"),
            Hint::Public(address) => write!(out, "public address {address}"),
            Hint::DefaultRoute(family) => write!(out, "default route of {family}"),
        }
    }
}

impl Choice {
    /// From the command line.
    ///
    /// # Errors
    /// A regular expression that is none.
    pub fn parse(options: &Options) -> Result<Self, String> {
        let pattern = |text: &String| Regex::new(text).map_err(|error| format!("--iface-regex {text:?}: {error}"));
        Ok(Choice {
            names: options.iface.clone(),
            patterns: options.iface_regex.iter().map(pattern).collect::<Result<_, _>>()?,
            can_reach: options.iface_can_reach.clone(),
            public: PerFamily { v4: options.public_ip.map(IpAddr::V4), v6: options.public_ipv6.map(IpAddr::V6) },
        })
    }

    /// The same, with public addresses that others have laid down for this node.
    #[must_use]
    pub fn reached_by(&self, laid_down: PerFamily<IpAddr>) -> Self {
        let public = |family| laid_down.get(family).or(self.public.get(family)).copied();
        Choice { public: PerFamily::from_fn(public), ..self.clone() }
    }

    /// The addresses of which one is to be reached over the interface.
    pub(super) fn can_reach(&self) -> &[IpAddr] {
        &self.can_reach
    }

    /// Whether the routing table decides.
    pub(super) fn wants_routes(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty() && self.can_reach.is_empty()
    }

    /// What to go by for a family, best first: names and addresses, patterns, the address to be reached; or, if the operator
    /// said none of these, a public address that is on an interface, then the default route. What is of the family itself
    /// comes before what is of the other one.
    fn hints(&self, family: Family) -> Vec<Hint<'_>> {
        let own = |address: &IpAddr| Family::of(*address) == family;
        let named: Vec<Hint<'_>> =
            self.names.iter().map(|name| name.parse().map_or(Hint::Name(name), Hint::Address)).collect();
        let is_own_address = |hint: &&Hint<'_>| matches!(hint, Hint::Address(address) if own(address));
        let mut hints: Vec<Hint<'_>> = named.iter().filter(is_own_address).copied().collect();
        hints.extend(named.iter().filter(|hint| !is_own_address(hint)));
        hints.extend(self.patterns.iter().map(Hint::Pattern));
        let reach = |of_family: bool| self.can_reach.iter().filter(move |address| own(address) == of_family);
        hints.extend(reach(true).chain(reach(false)).copied().map(Hint::Reach));
        if hints.is_empty() {
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            let public = [family, other].into_iter().filter_map(|family| self.public.get(family));
            hints.extend(public.copied().map(Hint::Public));
            hints.extend([family, other].map(Hint::DefaultRoute));
        }
        hints
    }
}

impl Uplink {
    /// Chooses an interface and an address on it for each of `families`. Where several addresses are as good, the one of
    /// `before` is kept: one that is added to the interface moves nobody.
    pub fn choose(tables: &Tables, choice: &Choice, families: &[Family], before: Option<&Uplink>) -> Chosen {
        let mut chosen = Chosen { candidates: tables.candidates(), ..Chosen::default() };
        for family in families {
            let kept = before.and_then(|before| before.local(*family));
            let public = choice.public.get(*family).copied();
            let hints = choice.hints(*family);
            let found = hints.iter().find_map(|hint| Some((hint, tables.follow(*hint, *family, public, kept)?)));
            match found {
                Some((hint, way)) => {
                    chosen.uplink.ways.set(*family, way);
                    chosen.reasons.set(*family, hint.to_string());
                }
                None => drop(chosen.lacking.set(*family, tables.complaint(&hints, *family))),
            }
        }
        chosen
    }
}

impl Tables {
    /// The way to which a hint leads, if it leads to an interface with an address of the family.
    fn follow(&self, hint: Hint<'_>, family: Family, public: Option<IpAddr>, kept: Option<IpAddr>) -> Option<Way> {
        let (index, named) = self.interface(hint, family)?;
        let link = self.candidate(index)?;
        let named = named.or(public);
        let local = self.local(index, family, named, kept)?;
        let on_link = self.usable(index, family).map(|entry| entry.address).collect();
        let public = public.unwrap_or(local);
        let (interface, drivers) = (link.name.clone(), self.drivers_beneath(index));
        Some(Way { interface, mtu: link.mtu, local, public, on_link, drivers })
    }

    /// An interface that may be an underlay: any but our own tunnels, whose addresses are the pod network's.
    fn candidate(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index && link.alias != kernel::LINK_ALIAS)
    }

    /// The addresses of a family that packets can leave from.
    fn usable(&self, index: u32, family: Family) -> impl Iterator<Item = &AddressEntry> {
        let good = move |entry: &&AddressEntry| {
            let ip = entry.address.ip();
            entry.index == index && Family::of(ip) == family && is_global(ip) && !entry.failed
        };
        self.addresses.iter().filter(good)
    }

    /// The address of an interface to take: the named one if it has it, else one that will stay. Of those that are equally
    /// good the one that we have, then the kernel's first. IPv6 has its newest first, such as one that moves between machines,
    /// which has no prefix to it.
    fn local(&self, index: u32, family: Family, named: Option<IpAddr>, kept: Option<IpAddr>) -> Option<IpAddr> {
        let rank = |entry: &&AddressEntry| {
            let (ip, alone) = (entry.address.ip(), entry.address.prefix() == family.bits());
            (Some(ip) != named, !entry.lasting, alone, Some(ip) != kept)
        };
        self.usable(index, family).min_by_key(rank).map(|entry| entry.address.ip())
    }

    /// The interface that a hint names, and the address of the family if the hint names that as well.
    fn interface(&self, hint: Hint<'_>, family: Family) -> Option<(u32, Option<IpAddr>)> {
        let own = |address: IpAddr| Some(address).filter(|address| Family::of(*address) == family);
        match hint {
            Hint::Name(name) => self.links.iter().find(|link| link.name == name).map(|link| (link.index, None)),
            Hint::Address(wanted) | Hint::Public(wanted) => {
                let owner = self.addresses.iter().find(|entry| entry.address.ip() == wanted)?;
                Some((owner.index, own(wanted)))
            }
            Hint::Pattern(pattern) => self.matching(pattern, family),
            Hint::Reach(address) => {
                let route = self.reaching.get(&address)?;
                Some((route.dev?, route.source.and_then(own)))
            }
            Hint::DefaultRoute(of) => {
                let default = self.routes.iter().filter(|route| {
                    let (dst, main) = (route.dst, route.table == MAIN_TABLE && route.kind == RouteKind::Unicast);
                    main && dst.prefix() == 0 && Family::of(dst.ip()) == of && route.dev.is_some()
                });
                default.min_by_key(|route| route.metric.unwrap_or(0)).and_then(|route| Some((route.dev?, None)))
            }
        }
    }

    /// flannel tries addresses before names. An interface that matches by an address of the other family comes last.
    fn matching(&self, pattern: &Regex, family: Family) -> Option<(u32, Option<IpAddr>)> {
        let indices = || self.links.iter().filter(|link| self.candidate(link.index).is_some()).map(|link| link.index);
        let address = |index, family| {
            let mut usable = self.usable(index, family).map(|entry| entry.address.ip());
            usable.find(|ip| pattern.is_match(&ip.to_string()))
        };
        let has_address = |index: &u32| self.usable(*index, family).next().is_some();
        let by_address = indices().find_map(|index| Some((index, Some(address(index, family)?))));
        let by_name = || {
            let named = self.links.iter().filter(|link| pattern.is_match(&link.name)).map(|link| link.index);
            named.filter(|index| self.candidate(*index).is_some()).find(has_address).map(|index| (index, None))
        };
        let by_other = || {
            let other = |index: &u32| Family::ALL.into_iter().any(|family| address(*index, family).is_some());
            indices().filter(has_address).find(other).map(|index| (index, None))
        };
        by_address.or_else(by_name).or_else(by_other)
    }

    /// Why no hint led anywhere.
    fn complaint(&self, hints: &[Hint<'_>], family: Family) -> String {
        let without = hints.iter().find_map(|hint| {
            let (index, _) = self.interface(*hint, family)?;
            Some(format!("interface {} ({hint}) has no {family} address", self.candidate(index)?.name))
        });
        let tried = || hints.iter().map(Hint::to_string).collect::<Vec<_>>().join(", ");
        let what = without.unwrap_or_else(|| format!("no interface with an {family} address is found by {}", tried()));
        format!("{what}; choose one with --iface: {}", self.candidates())
    }

    /// Interfaces with an address of their own, in one line.
    fn candidates(&self) -> String {
        let mut told: Vec<String> = Vec::new();
        for link in &self.links {
            let usable = Family::ALL.into_iter().flat_map(|family| self.usable(link.index, family));
            let addresses: Vec<String> = usable.map(|entry| entry.address.to_string()).collect();
            if self.candidate(link.index).is_some() && !addresses.is_empty() {
                told.push(format!("{} [{}]", link.name, addresses.join(" ")));
            }
        }
        let more = told.len().saturating_sub(TOLD);
        told.truncate(TOLD);
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        if told.is_empty() { "no interface has an address".into() } else { told.join(", ") }
    }
}

/// Whether other nodes can be reached from it.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
