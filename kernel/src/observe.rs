//! What the kernel has of the overlay.

use crate::netlink::{Link, LinkKind, Netlink, RouteEntry, RouteKind};
use crate::{
    IpipLink, LINK_ALIAS, Overlay, REFUSAL_METRIC, ROUTE_PROTOCOL, Result, Route, StrayRoute, TunLink, Tunnel,
    VxlanLink, WireGuardLink,
};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The metric that the kernel gives to an IPv6 route without one (IP6_RT_PRIO_USER).
const IPV6_METRIC: u32 = 1024;

/// What counts as ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// names of the devices that we own, such as flannel.1, whether they exist or not
    pub devices: BTreeSet<String>,
    /// the cluster's networks: gateway routes to parts of them are a predecessor's (Go flannel with host-gw)
    pub networks: Vec<IpNetwork>,
    /// this node's own parts of them: a blackhole in the place of one is a predecessor's (its `--ip-blackhole-route`)
    pub own: Vec<IpNetwork>,
}

/// Reads the state of everything that is ours: the devices of `scope` with all their addresses (but link-local ones),
/// permanent neighbours and forwarding entries, and our routes; devices with our mark under other names, as
/// [obstacles](crate::Drift::obstacles); and the routes that a predecessor left without a mark, as
/// [strays](crate::Drift::strays).
pub fn observe(netlink: &mut Netlink, scope: &Scope) -> Result<Overlay> {
    let Frame { names, own, mut overlay } = Frame::observe(netlink, scope)?;
    for (index, name) in own {
        overlay.neighbours.extend(netlink.fold_neighbours(Some(index), |found: &mut Vec<_>, neighbour| {
            let mac = neighbour.mac.filter(|_| neighbour.permanent);
            found.extend(mac.map(|mac| ((name.clone(), neighbour.ip), mac)));
        })?);
        overlay.fdb.extend(netlink.fold_fdb(index, |found: &mut Vec<_>, entry| {
            let dst = entry.dst.filter(|_| entry.permanent);
            found.extend(dst.map(|dst| ((name.clone(), entry.mac), dst)));
        })?);
    }
    let routes = netlink.fold_main_routes(|found: &mut Vec<_>, entry| {
        let dev = entry.dev.and_then(|index| names.get(&index)).map(String::as_str);
        match classify(&entry, dev, scope) {
            Finding::Foreign => {}
            finding => found.push((entry, finding)),
        }
    })?;
    for (entry, finding) in routes.into_iter().flatten() {
        match finding {
            Finding::Refusal => drop(overlay.refusals.insert(entry.dst, entry.kind)),
            // Two at once differ in what the kernel tells routes apart by and we do not, like the type of service.
            Finding::Ours(route) if !overlay.routes.contains_key(&entry.dst) => {
                drop(overlay.routes.insert(entry.dst, route));
            }
            _ => {
                let dev = entry.dev.and_then(|index| names.get(&index)).map(String::as_str);
                overlay.drift.strays.insert(stray(&entry, dev));
            }
        }
    }
    Ok(overlay)
}

/// What there is few of: devices and their addresses.
pub(crate) struct Frame {
    /// names of all devices, by index
    pub(crate) names: BTreeMap<u32, String>,
    /// the devices of ours whose tables are to be looked at
    pub(crate) own: Vec<(u32, String)>,
    /// without what is in tables
    pub(crate) overlay: Overlay,
}

impl Frame {
    pub(crate) fn observe(netlink: &mut Netlink, scope: &Scope) -> Result<Self> {
        let links = netlink.links()?;
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let (mut own, mut overlay) = (Vec::new(), Overlay::default());
        // Renamed by somebody, or of another configuration: it holds what the right one needs, like its VNI and port.
        let misplaced = |link: &&Link| link.alias == LINK_ALIAS && !scope.devices.contains(&link.name);
        overlay.drift.obstacles.extend(links.iter().filter(misplaced).map(|link| link.name.clone()));
        for link in links.iter().filter(|link| scope.devices.contains(&link.name)) {
            let Some(mut found) = tunnel(link, &names) else {
                overlay.drift.obstacles.insert(link.name.clone());
                continue;
            };
            if let Tunnel::Vxlan(vxlan) = &mut found {
                // Who may not ask is told when he wants to change it.
                vxlan.tx_checksum = netlink.tx_checksum(&link.name).ok().flatten();
            }
            overlay.links.insert(link.name.clone(), found);
            if !link.up {
                overlay.drift.down.insert(link.name.clone());
            }
            let addresses = netlink.addresses_of(link.index)?.into_iter().filter(|found| !is_link_local(found.ip()));
            overlay.addresses.extend(addresses.map(|found| (link.name.clone(), found)));
            own.push((link.index, link.name.clone()));
        }
        Ok(Frame { names, own, overlay })
    }
}

pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The device as we would have made it, or None if we would never make one like it.
fn tunnel(link: &Link, names: &BTreeMap<u32, String>) -> Option<Tunnel> {
    let mtu = link.mtu;
    Some(match &link.kind {
        LinkKind::Vxlan(vxlan) => Tunnel::Vxlan(VxlanLink {
            vni: vxlan.vni,
            port: vxlan.port,
            underlay: names.get(&vxlan.underlay?)?.clone(),
            local: vxlan.local?,
            mac: link.mac?,
            mtu,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
            tx_checksum: None,
        }),
        // With a fixed remote end it would carry everything there.
        LinkKind::Ipip(ipip) if ipip.remote.is_none() => Tunnel::Ipip(IpipLink { local: ipip.local?, mtu }),
        LinkKind::Tun => Tunnel::Tun(TunLink { mtu }),
        LinkKind::WireGuard => Tunnel::WireGuard(WireGuardLink { mtu }),
        _ => return None,
    })
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// somebody else's
    Foreign,
    /// as we set it
    Ours(Route),
    /// our refusal of packets to nowhere
    Refusal,
    /// in our place, but not as we set it
    Stray,
}

pub(crate) fn classify(entry: &RouteEntry, dev: Option<&str>, scope: &Scope) -> Finding {
    if entry.protocol == ROUTE_PROTOCOL {
        let refuses = matches!(entry.kind, RouteKind::Unreachable | RouteKind::Blackhole);
        if refuses && entry.metric == Some(REFUSAL_METRIC) {
            return Finding::Refusal;
        }
        return match dev {
            Some(dev) if is_plain(entry) => {
                Finding::Ours(Route { via: entry.via, dev: dev.to_owned(), onlink: entry.onlink })
            }
            _ => Finding::Stray,
        };
    }
    let over_ours = dev.is_some_and(|dev| scope.devices.contains(dev));
    let unmarked = match entry.protocol {
        libc::RTPROT_BOOT if entry.kind == RouteKind::Blackhole => {
            scope.own.contains(&entry.dst) && has_default_metric(entry)
        }
        libc::RTPROT_BOOT => over_ours || (entry.via.is_some() && is_inside(entry.dst, &scope.networks)),
        libc::RTPROT_STATIC => over_ours,
        _ => false,
    };
    if unmarked { Finding::Stray } else { Finding::Foreign }
}

/// Whether the route has nothing about it that we would not have said.
fn is_plain(entry: &RouteEntry) -> bool {
    entry.kind == RouteKind::Unicast
        && !entry.multipath
        && has_default_metric(entry)
        && (entry.source, entry.mtu, entry.advmss) == (None, None, None)
}

fn has_default_metric(entry: &RouteEntry) -> bool {
    let default_metric = if entry.dst.is_ipv4() { 0 } else { IPV6_METRIC };
    entry.metric.unwrap_or(default_metric) == default_metric
}

/// Whether `part` is strictly smaller than one of the networks and inside it.
fn is_inside(part: IpNetwork, networks: &[IpNetwork]) -> bool {
    let inside = |network: &IpNetwork| match (network, part) {
        (IpNetwork::V4(network), IpNetwork::V4(part)) => {
            part.prefix() > network.prefix() && network.contains(part.network())
        }
        (IpNetwork::V6(network), IpNetwork::V6(part)) => {
            part.prefix() > network.prefix() && network.contains(part.network())
        }
        _ => false,
    };
    networks.iter().any(inside)
}

fn stray(entry: &RouteEntry, dev: Option<&str>) -> StrayRoute {
    StrayRoute {
        dst: entry.dst,
        via: entry.via,
        dev: dev.map(str::to_owned),
        protocol: entry.protocol,
        metric: entry.metric,
        kind: entry.kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dst: &str, via: Option<&str>, protocol: u8) -> RouteEntry {
        RouteEntry {
            dst: dst.parse().unwrap(),
            via: via.map(|via| via.parse().unwrap()),
            dev: Some(2),
            source: None,
            onlink: false,
            table: 254,
            protocol,
            metric: None,
            scope: 0,
            kind: RouteKind::Unicast,
            mtu: None,
            advmss: None,
            multipath: false,
        }
    }

    fn scope() -> Scope {
        Scope {
            devices: BTreeSet::from(["flannel.1".into()]),
            networks: vec!["10.5.0.0/16".parse().unwrap()],
            own: vec!["10.5.1.0/24".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_marked_is_ours_wherever_it_leads() {
        let route = entry("172.16.0.0/24", Some("192.0.2.1"), ROUTE_PROTOCOL);
        assert!(matches!(classify(&route, Some("eth0"), &scope()), Finding::Ours(_)));
        let odd = RouteEntry { metric: Some(5), ..route.clone() };
        assert_eq!(classify(&odd, Some("eth0"), &scope()), Finding::Stray);
        let refusal =
            RouteEntry { kind: RouteKind::Unreachable, metric: Some(REFUSAL_METRIC), via: None, ..route.clone() };
        assert_eq!(classify(&refusal, None, &scope()), Finding::Refusal);
        let silent = RouteEntry { kind: RouteKind::Blackhole, ..refusal };
        assert_eq!(classify(&silent, None, &scope()), Finding::Refusal);
        let odd = RouteEntry { kind: RouteKind::Blackhole, ..route };
        assert_eq!(classify(&odd, None, &scope()), Finding::Stray);
    }

    #[test]
    fn a_blackhole_is_a_predecessors_in_place_of_the_own_subnet_only() {
        let blackhole = |dst, protocol, metric| RouteEntry {
            kind: RouteKind::Blackhole,
            dev: None,
            metric,
            ..entry(dst, None, protocol)
        };
        for (route, expected) in [
            (blackhole("10.5.1.0/24", libc::RTPROT_BOOT, None), Finding::Stray),
            (blackhole("10.5.1.0/24", libc::RTPROT_BOOT, Some(7)), Finding::Foreign),
            (blackhole("10.5.1.0/24", libc::RTPROT_STATIC, None), Finding::Foreign),
            // Somebody keeps packets from a node on purpose.
            (blackhole("10.5.2.0/24", libc::RTPROT_BOOT, None), Finding::Foreign),
        ] {
            assert_eq!(classify(&route, None, &scope()), expected, "{route:?}");
        }
    }

    #[test]
    fn only_a_predecessors_routes_are_adopted() {
        let cases = [
            ("10.5.3.0/24", Some("10.5.3.0"), libc::RTPROT_BOOT, "flannel.1", true),
            ("10.5.3.0/24", Some("10.5.3.0"), libc::RTPROT_STATIC, "flannel.1", true),
            ("10.5.3.0/24", None, libc::RTPROT_KERNEL, "flannel.1", false),
            ("10.5.3.0/24", Some("192.0.2.3"), libc::RTPROT_BOOT, "eth0", true),
            ("10.5.3.0/24", Some("192.0.2.3"), libc::RTPROT_STATIC, "eth0", false),
            ("10.5.3.0/24", None, libc::RTPROT_BOOT, "eth0", false),
            ("10.5.0.0/16", Some("192.0.2.3"), libc::RTPROT_BOOT, "eth0", false),
            ("10.0.0.0/8", Some("192.0.2.3"), libc::RTPROT_BOOT, "eth0", false),
            ("0.0.0.0/0", Some("192.0.2.3"), libc::RTPROT_BOOT, "eth0", false),
            ("10.5.3.7/32", None, crate::POD_ROUTE_PROTOCOL, "veth1", false),
            ("fd00::/64", Some("2001:db8::3"), libc::RTPROT_BOOT, "eth0", false),
        ];
        for (dst, via, protocol, dev, adopted) in cases {
            let expected = if adopted { Finding::Stray } else { Finding::Foreign };
            assert_eq!(classify(&entry(dst, via, protocol), Some(dev), &scope()), expected, "{dst} {via:?} {dev}");
        }
    }
}
