//! Routes.

use super::socket::{Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use super::{Netlink, attributes, ip_address};
use crate::{Error, ROUTE_PROTOCOL, Result};
use ipnetwork::IpNetwork;
use netlink_packet_core::Parseable;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType, RouteVia,
};
use nix::errno::Errno;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The main routing table, in which everything is that no rule sends elsewhere.
const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

/// A route that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// destination; the default route's is 0.0.0.0/0 or ::/0
    pub dst: IpNetwork,
    /// gateway, of either family
    pub via: Option<IpAddr>,
    /// index of the output device
    pub dev: Option<u32>,
    /// source address of packets that have none yet
    pub source: Option<IpAddr>,
    /// the gateway is reached on the device although no address of it covers the gateway
    pub onlink: bool,
    /// routing table; 254 is the main one
    pub table: u32,
    /// who made it (RTPROT_*): 2 kernel, 3 boot, 4 static, [`ROUTE_PROTOCOL`] us
    pub protocol: u8,
    /// metric; none means 0. IPv6 routes always have one, 1024 by default.
    pub metric: Option<u32>,
    /// how far the destination is (RT_SCOPE_*): 0 anywhere, 253 on the link, 254 on this host
    pub scope: u8,
    /// what happens to the packets
    pub kind: RouteKind,
    /// path MTU in bytes
    pub mtu: Option<u32>,
    /// TCP segment size to advertise, in bytes
    pub advmss: Option<u32>,
    /// it has several next hops, none of which is told here
    pub multipath: bool,
}

/// A route to be made, or to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// destination; host bits are ignored
    pub dst: IpNetwork,
    /// gateway, of either family
    pub via: Option<IpAddr>,
    /// index of the output device
    pub dev: Option<u32>,
    /// source address of packets that have none yet
    pub source: Option<IpAddr>,
    /// the gateway is reached on the device although no address of it covers the gateway
    pub onlink: bool,
    /// routing table; the main one if None
    pub table: Option<u32>,
    /// who makes it; when removing, 0 stands for anybody
    pub protocol: u8,
    /// metric; the family's default if None (when removing: any)
    pub metric: Option<u32>,
    /// RT_SCOPE_*; what fits the other values if None (when removing: any)
    pub scope: Option<u8>,
    /// what happens to the packets
    pub kind: RouteKind,
    /// path MTU in bytes
    pub mtu: Option<u32>,
    /// TCP segment size to advertise, in bytes
    pub advmss: Option<u32>,
}

impl Default for RouteSpec {
    /// A unicast default route of IPv4 with our mark, in the main table.
    fn default() -> Self {
        RouteSpec {
            dst: everywhere(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            via: None,
            dev: None,
            source: None,
            onlink: false,
            table: None,
            protocol: ROUTE_PROTOCOL,
            metric: None,
            scope: None,
            kind: RouteKind::Unicast,
            mtu: None,
            advmss: None,
        }
    }
}

/// What a route does to packets (RTN_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// sends them on
    Unicast,
    /// they are for this host
    Local,
    /// drops them without a word
    Blackhole,
    /// drops them and says that the host is unreachable
    Unreachable,
    /// drops them and says that it is not allowed
    Prohibit,
    /// any other, by its number
    Other(u8),
}

impl Netlink {
    /// All routes of all tables and both families, without the cached ones.
    pub fn routes(&mut self) -> Result<Vec<RouteEntry>> {
        Ok(self.fold_routes(0, Vec::push)?.concat())
    }

    /// The routes of the main table, each handed to `take` (see [`Netlink::fold`]); what comes of each family.
    pub(crate) fn fold_main_routes<T: Default>(&mut self, mut take: impl FnMut(&mut T, RouteEntry)) -> Result<[T; 2]> {
        self.fold_routes(MAIN, |found, route: RouteEntry| {
            if route.table == MAIN {
                take(found, route);
            }
        })
    }

    fn fold_routes<T: Default>(&mut self, table: u32, mut take: impl FnMut(&mut T, RouteEntry)) -> Result<[T; 2]> {
        // A question about both families at once could not name a table.
        let mut of = |family: IpAddr| {
            let mut body = RouteMessage::default();
            body.header.address_family = family.into();
            if table != 0 {
                body.attributes.push(RouteAttribute::Table(table));
            }
            let message = Message::encode(libc::RTM_GETROUTE, NLM_F_DUMP, &body);
            let found = self.fold(
                message,
                || format!("listing routes from {family}"),
                |found, payload| {
                    if let Some(route) = decode(payload, family) {
                        take(found, route);
                    }
                },
            );
            match found {
                // No such family, or a table in which there never was a route.
                Err(error) if matches!(error.errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOENT) => {
                    Ok(T::default())
                }
                found => found,
            }
        };
        Ok([of(IpAddr::V4(Ipv4Addr::UNSPECIFIED))?, of(IpAddr::V6(Ipv6Addr::UNSPECIFIED))?])
    }

    /// Adds a route. EEXIST if there is one with this destination and metric.
    pub fn add_route(&mut self, route: &RouteSpec) -> Result<()> {
        let message = route_message(route, NLM_F_CREATE | NLM_F_EXCL);
        self.request(message, || format!("adding route {route}"))
    }

    /// Adds a route in front of those with this destination and metric; EEXIST if there is an equal one. (IPv6 has no order
    /// of equal routes: it makes the gateway another next hop of the route that is there.)
    pub fn prepend_route(&mut self, route: &RouteSpec) -> Result<()> {
        self.request(route_message(route, NLM_F_CREATE), || format!("adding route {route}"))
    }

    /// Adds a route, or puts it in the place of the one with this destination and metric, without a gap.
    pub fn replace_route(&mut self, route: &RouteSpec) -> Result<()> {
        let message = route_message(route, NLM_F_CREATE | NLM_F_REPLACE);
        self.request(message, || format!("setting route {route}"))
    }

    /// Removes a route with these properties; false if there is none.
    pub fn delete_route(&mut self, route: &RouteSpec) -> Result<bool> {
        let gone = [Errno::ESRCH, Errno::ENODEV];
        self.request_unless(delete_route_message(route), &gone, || format!("removing route {route}"))
    }

    /// The way that a packet from here to `destination` would take, and the source address that it would get.
    pub fn lookup(&mut self, destination: IpAddr) -> Result<RouteEntry> {
        let mut body = RouteMessage::default();
        body.header.address_family = destination.into();
        body.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        body.attributes.push(RouteAttribute::Destination(destination.into()));
        let operation = || format!("looking up the route to {destination}");
        let message = Message::encode(libc::RTM_GETROUTE, 0, &body);
        // The answer to this question is a cached route by nature.
        let found = self.query(message, operation, |payload| decode_entry(payload, destination))?;
        found.into_iter().next().ok_or_else(|| Error::new(operation(), Errno::EBADMSG))
    }
}

/// RTM_NEWROUTE with `flags`, which tell whether it may exist.
pub(crate) fn route_message(route: &RouteSpec, flags: u16) -> Message {
    Message::encode(libc::RTM_NEWROUTE, flags, &body(route, route.scope.unwrap_or_else(|| fitting_scope(route))))
}

/// RTM_DELROUTE
pub(crate) fn delete_route_message(route: &RouteSpec) -> Message {
    // RT_SCOPE_NOWHERE matches every scope.
    Message::encode(libc::RTM_DELROUTE, 0, &body(route, route.scope.unwrap_or(libc::RT_SCOPE_NOWHERE)))
}

/// IPv4 wants to be told how far the next hop is; IPv6 does not use scopes.
fn fitting_scope(route: &RouteSpec) -> u8 {
    match route.kind {
        RouteKind::Local if route.dst.is_ipv4() => libc::RT_SCOPE_HOST,
        RouteKind::Unicast if route.dst.is_ipv4() && route.via.is_none() => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    }
}

fn body(route: &RouteSpec, scope: u8) -> RouteMessage {
    let mut body = RouteMessage::default();
    let table = route.table.unwrap_or(MAIN);
    body.header = RouteHeader {
        address_family: route.dst.ip().into(),
        destination_prefix_length: route.dst.prefix(),
        // Numbers beyond the byte go in the attribute only.
        table: u8::try_from(table).unwrap_or(libc::RT_TABLE_COMPAT),
        protocol: route.protocol.into(),
        scope: RouteScope::from(scope),
        kind: route.kind.into(),
        flags: if route.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let attributes = &mut body.attributes;
    attributes.push(RouteAttribute::Table(table));
    if route.dst.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.extend(route.via.map(|via| {
        if via.is_ipv4() == route.dst.is_ipv4() {
            RouteAttribute::Gateway(via.into())
        } else {
            RouteAttribute::Via(via.into())
        }
    }));
    attributes.extend(route.dev.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    let metrics: Vec<_> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    body
}

pub(super) fn decode(payload: &[u8], family: IpAddr) -> Option<RouteEntry> {
    let header = RouteHeader::parse(payload).ok()?;
    if header.flags.contains(RouteFlags::Cloned) { None } else { decode_entry(payload, family) }
}

pub(super) fn decode_entry(payload: &[u8], family: IpAddr) -> Option<RouteEntry> {
    let header = RouteHeader::parse(payload).ok()?;
    let mut entry = RouteEntry {
        dst: everywhere(family),
        via: None,
        dev: None,
        source: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        table: header.table.into(),
        protocol: header.protocol.into(),
        metric: None,
        scope: header.scope.into(),
        kind: header.kind.into(),
        mtu: None,
        advmss: None,
        multipath: false,
    };
    for attribute in attributes(payload.get(12..)?) {
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_DST => entry.dst = IpNetwork::new(ip_address(value)?, header.destination_prefix_length).ok()?,
            libc::RTA_GATEWAY => entry.via = ip_address(value),
            libc::RTA_VIA => {
                entry.via = match RouteVia::parse(value) {
                    Ok(RouteVia::Inet(address)) => Some(address.into()),
                    Ok(RouteVia::Inet6(address)) => Some(address.into()),
                    _ => None,
                }
            }
            libc::RTA_PREFSRC => entry.source = ip_address(value),
            libc::RTA_OIF => entry.dev = number(value),
            libc::RTA_PRIORITY => entry.metric = number(value),
            libc::RTA_TABLE => entry.table = number(value)?,
            libc::RTA_MULTIPATH => entry.multipath = true,
            libc::RTA_METRICS => {
                for metric in attributes(value).filter_map(|metric| RouteMetric::parse(&metric).ok()) {
                    match metric {
                        RouteMetric::Mtu(mtu) => entry.mtu = Some(mtu),
                        RouteMetric::Advmss(advmss) => entry.advmss = Some(advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(entry)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// 0.0.0.0/0 or ::/0, of the family of `example`.
fn everywhere(example: IpAddr) -> IpNetwork {
    let unspecified = match example {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // 0 is a prefix length of both families, so that the alternative never comes about.
    IpNetwork::new(unspecified, 0).unwrap_or_else(|_| IpNetwork::from(unspecified))
}

impl From<RouteType> for RouteKind {
    fn from(kind: RouteType) -> Self {
        match kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Unreachable => RouteKind::Unreachable,
            RouteType::Prohibit => RouteKind::Prohibit,
            other => RouteKind::Other(other.into()),
        }
    }
}

impl From<RouteKind> for RouteType {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Local => RouteType::Local,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Unreachable => RouteType::Unreachable,
            RouteKind::Prohibit => RouteType::Prohibit,
            RouteKind::Other(number) => number.into(),
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteKind::Unicast => f.write_str("unicast"),
            RouteKind::Local => f.write_str("local"),
            RouteKind::Blackhole => f.write_str("blackhole"),
            RouteKind::Unreachable => f.write_str("unreachable"),
            RouteKind::Prohibit => f.write_str("prohibit"),
            RouteKind::Other(number) => write!(f, "type {number}"),
        }
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{} ", self.kind)?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(dev) = self.dev {
            write!(f, " dev number {dev}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if let Some(table) = self.table {
            write!(f, " table {table}")?;
        }
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}
