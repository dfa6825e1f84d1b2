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
        let link = self.candidate(self.interface(hint, family)?)?;
        // One that was named is taken, or else one that will stay: IPv6 has its newest first, and one without a network is
        // likely to move between machines. Of those that are as good the one that we have, then the kernel's first.
        let rank = |entry: &&AddressEntry| {
            let (ip, alone) = (entry.address.ip(), entry.address.prefix() == family.bits());
            (!self.names(hint, ip), Some(ip) != public, !entry.lasting, alone, Some(ip) != kept)
        };
        let local = self.usable(link.index, family, hint).min_by_key(rank)?.address.ip();
        let public = public.unwrap_or(local);
        Some(Way {
            interface: link.name.clone(),
            // No IP packet fills more, such as the loopback device takes.
            mtu: link.mtu.min(u16::MAX.into()),
            local,
            public,
            translated: self.addresses.iter().all(|entry| entry.address.ip() != public),
            on_link: self.of_link(link.index, family).map(|entry| entry.address).collect(),
            drivers: self.drivers_beneath(link.index),
        })
    }

    /// An interface that may be an underlay: any but our own tunnels, whose addresses are the pod network's.
    fn candidate(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index && link.alias != kernel::LINK_ALIAS)
    }

    /// The addresses of a family that an interface really has.
    fn of_link(&self, index: u32, family: Family) -> impl Iterator<Item = &AddressEntry> {
        let theirs = move |entry: &&AddressEntry| entry.index == index && Family::of(entry.address.ip()) == family;
        self.addresses.iter().filter(theirs).filter(|entry| !entry.failed)
    }

    /// Those that other nodes can reach, as far as one can tell; whoever names another knows better.
    fn usable<'a>(&'a self, index: u32, family: Family, hint: Hint<'a>) -> impl Iterator<Item = &'a AddressEntry> {
        let is_named = move |ip| matches!(hint, Hint::Address(named) | Hint::Public(named) if named == ip);
        self.of_link(index, family).filter(move |entry| is_global(entry.address.ip()) || is_named(entry.address.ip()))
    }

    /// Whether a hint says this very address.
    fn names(&self, hint: Hint<'_>, ip: IpAddr) -> bool {
        match hint {
            Hint::Address(named) | Hint::Public(named) => named == ip,
            Hint::Pattern(pattern) => pattern.is_match(&ip.to_string()),
            Hint::Reach(address) => self.reaching.get(&address).is_some_and(|route| route.source == Some(ip)),
            Hint::Name(_) | Hint::DefaultRoute(_) => false,
        }
    }

    /// The index of the interface to which a hint leads.
    fn interface(&self, hint: Hint<'_>, family: Family) -> Option<u32> {
        match hint {
            Hint::Name(name) => self.links.iter().find(|link| link.name == name).map(|link| link.index),
            Hint::Address(wanted) | Hint::Public(wanted) => {
                self.addresses.iter().find(|entry| entry.address.ip() == wanted).map(|entry| entry.index)
            }
            Hint::Pattern(pattern) => self.matching(pattern, family),
            Hint::Reach(address) => self.reaching.get(&address)?.dev,
            Hint::DefaultRoute(of) => {
                let default = self.routes.iter().filter(|route| {
                    let (dst, main) = (route.dst, route.table == MAIN_TABLE && route.kind == RouteKind::Unicast);
                    main && dst.prefix() == 0 && Family::of(dst.ip()) == of && route.dev.is_some()
                });
                default.min_by_key(|route| route.metric.unwrap_or(0)).and_then(|route| route.dev)
            }
        }
    }

    /// flannel tries addresses before names. An interface that matches by an address of the other family comes last.
    fn matching(&self, pattern: &Regex, family: Family) -> Option<u32> {
        let usable = |link: &Link, family| self.usable(link.index, family, Hint::Pattern(pattern));
        let matches =
            |link: &Link, family| usable(link, family).any(|entry| pattern.is_match(&entry.address.ip().to_string()));
        let candidates: Vec<&Link> = self.links.iter().filter(|link| self.candidate(link.index).is_some()).collect();
        let candidates = || candidates.iter().filter(|link| usable(link, family).next().is_some());
        let by_address = || candidates().find(|link| matches(link, family));
        let by_name = || candidates().find(|link| pattern.is_match(&link.name));
        let by_other = || candidates().find(|link| Family::ALL.into_iter().any(|family| matches(link, family)));
        by_address().or_else(by_name).or_else(by_other).map(|link| link.index)
    }

    /// Why no hint led anywhere.
    fn complaint(&self, hints: &[Hint<'_>], family: Family) -> String {
        let without = hints.iter().find_map(|hint| {
            let index = self.interface(*hint, family)?;
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
            let all = Family::ALL.into_iter().flat_map(|family| self.of_link(link.index, family));
            let global = all.filter(|entry| is_global(entry.address.ip()));
            let addresses: Vec<String> = global.map(|entry| entry.address.to_string()).collect();
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
