//! The underlay interface: which one carries the traffic between nodes, decided from a snapshot of the kernel's tables.

use crate::family::{Family, PerFamily};
use crate::options::Options;
use ipnetwork::IpNetwork;
use kernel::netlink::{Link, Netlink, RouteEntry};
use regex_lite::Regex;
use std::net::IpAddr;

/// The interface between nodes, and this node's addresses on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// name of the interface
    pub name: String,
    /// its MTU in bytes
    pub mtu: u32,
    /// the address of each family that packets leave from
    pub local: PerFamily<IpAddr>,
    /// the address of each family by which other nodes reach this one; usually `local`
    pub public: PerFamily<IpAddr>,
    /// the prefixes that are reached without a gateway
    pub on_link: Vec<IpNetwork>,
}

/// What the operator said about the interface.
#[derive(Clone, Debug)]
pub struct Choice {
    names: Vec<String>,
    patterns: Vec<Regex>,
    can_reach: Option<IpAddr>,
    public: PerFamily<IpAddr>,
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
            can_reach: options.iface_can_reach,
            public: PerFamily { v4: options.public_ip.map(IpAddr::V4), v6: options.public_ipv6.map(IpAddr::V6) },
        })
    }
}

impl Choice {
    /// Whether the routing table decides. With thousands of peers it is long.
    fn wants_routes(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }
}

/// The kernel's tables, as far as the choice depends on them.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// all links
    pub links: Vec<Link>,
    /// all addresses, with the index of their link
    pub addresses: Vec<(u32, IpNetwork)>,
    /// the routing tables, unless the operator's choice makes them irrelevant
    pub routes: Vec<RouteEntry>,
    /// index of the link over which `--iface-can-reach` is reached
    pub reaching: Option<u32>,
}

impl Tables {
    /// Reads them.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn read(netlink: &mut Netlink, choice: &Choice) -> kernel::Result<Self> {
        Ok(Tables {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            routes: if choice.wants_routes() { netlink.routes()? } else { Vec::new() },
            reaching: choice.can_reach.map(|address| netlink.lookup(address)).transpose()?.and_then(|route| route.dev),
        })
    }
}

impl Uplink {
    /// Chooses as flannel does: names or addresses first, then patterns, then the address to be reached, then a public
    /// address that is on an interface, then the interface of the default route. A family of `families` of which it has no
    /// address is left out: the families do not depend on each other.
    ///
    /// # Errors
    /// Why no interface fits, with the candidates.
    pub fn choose(tables: &Tables, choice: &Choice, families: &[Family]) -> Result<Self, String> {
        let index = find(tables, choice, families).ok_or_else(|| complaint(tables, choice))?;
        let Some(link) = tables.links.iter().find(|link| link.index == index) else {
            return Err(complaint(tables, choice));
        };
        let of_link: Vec<IpNetwork> =
            tables.addresses.iter().filter(|(owner, _)| *owner == index).map(|(_, address)| *address).collect();
        let mut local = PerFamily::default();
        for family in families {
            let usable = |address: &&IpNetwork| Family::of(address.ip()) == *family && is_global(address.ip());
            // An address that the operator named, if the interface has it; else the interface's first.
            let named =
                choice.names.iter().filter_map(|name| name.parse().ok()).chain(choice.public.get(*family).copied());
            let address = named
                .filter(|named| of_link.iter().any(|address| address.ip() == *named))
                .find(|named: &IpAddr| Family::of(*named) == *family)
                .or_else(|| of_link.iter().find(usable).map(IpNetwork::ip));
            if let Some(address) = address {
                local.set(*family, address);
            }
        }
        if local.is_empty() {
            return Err(lacking(&link.name, families));
        }
        let public = local.map(|family, address| choice.public.get(family).copied().unwrap_or(*address));
        Ok(Uplink { name: link.name.clone(), mtu: link.mtu, local, public, on_link: of_link })
    }

    /// This with those addresses of an interface of the same name that it has lost: one that bounces gets them back in a moment,
    /// and nothing is torn down for it.
    #[must_use]
    pub fn remembering(mut self, before: &Uplink) -> Self {
        if self.name == before.name {
            for (addresses, known) in [(&mut self.local, &before.local), (&mut self.public, &before.public)] {
                for (family, address) in known.iter() {
                    if addresses.get(family).is_none() {
                        addresses.set(family, *address);
                    }
                }
            }
        }
        self
    }

    /// What is missing for some of `families`, if anything.
    pub fn lacks(&self, families: &[Family]) -> Option<String> {
        let missing: Vec<Family> =
            families.iter().filter(|family| self.local.get(**family).is_none()).copied().collect();
        (!missing.is_empty()).then(|| lacking(&self.name, &missing))
    }

    /// Whether `address` is reached without a gateway.
    pub fn reaches_directly(&self, address: IpAddr) -> bool {
        self.on_link.iter().any(|prefix| prefix.contains(address))
    }
}

fn lacking(name: &str, families: &[Family]) -> String {
    let families: Vec<String> = families.iter().map(Family::to_string).collect();
    let families = families.join(" and no ");
    format!("interface {name} has no {families} address: give it one, or choose another with --iface")
}

fn find(tables: &Tables, choice: &Choice, families: &[Family]) -> Option<u32> {
    let by_address =
        |wanted: IpAddr| tables.addresses.iter().find(|(_, address)| address.ip() == wanted).map(|(index, _)| *index);
    let by_name = |name: &String| tables.links.iter().find(|link| link.name == *name).map(|link| link.index);
    if !choice.names.is_empty() || !choice.patterns.is_empty() {
        let named = |name: &String| name.parse().map_or_else(|_| by_name(name), by_address);
        let matched = |pattern: &Regex| {
            let by_name = tables.links.iter().find(|link| pattern.is_match(&link.name)).map(|link| link.index);
            by_name.or_else(|| {
                let matching = |(_, address): &&(u32, IpNetwork)| pattern.is_match(&address.ip().to_string());
                tables.addresses.iter().find(matching).map(|(index, _)| *index)
            })
        };
        return choice.names.iter().find_map(named).or_else(|| choice.patterns.iter().find_map(matched));
    }
    if choice.can_reach.is_some() {
        return tables.reaching;
    }
    let by_public =
        families.iter().filter_map(|family| choice.public.get(*family)).find_map(|public| by_address(*public));
    by_public.or_else(|| {
        let default = |route: &&RouteEntry| {
            route.dst.prefix() == 0 && families.contains(&Family::of(route.dst.ip())) && route.dev.is_some()
        };
        let lowest = tables.routes.iter().filter(default).min_by_key(|route| route.metric.unwrap_or(0));
        lowest.and_then(|route| route.dev)
    })
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

fn complaint(tables: &Tables, choice: &Choice) -> String {
    let asked = if !choice.names.is_empty() || !choice.patterns.is_empty() {
        let patterns = choice.patterns.iter().map(Regex::as_str);
        format!(
            "no interface matches {:?}",
            choice.names.iter().map(String::as_str).chain(patterns).collect::<Vec<_>>()
        )
    } else if let Some(address) = choice.can_reach {
        format!("no route to {address} (--iface-can-reach)")
    } else {
        "there is no default route to take the interface from".into()
    };
    let mut candidates = Vec::new();
    for link in tables.links.iter().filter(|link| link.name != "lo") {
        let addresses: Vec<String> = tables
            .addresses
            .iter()
            .filter(|(index, _)| *index == link.index)
            .map(|(_, address)| address.to_string())
            .collect();
        candidates.push(format!("{} [{}]", link.name, addresses.join(" ")));
    }
    format!("{asked}; choose one with --iface: {}", candidates.join(", "))
}
