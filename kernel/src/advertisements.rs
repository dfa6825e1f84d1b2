//! Router advertisements, by which a node may have its IPv6 addresses and default route. A namespace that starts to forward
//! IPv6 is a router itself to the kernel: a device whose `accept_ra` is 1 hears advertisements no more (ip-sysctl, `accept_ra`),
//! and the default routes that they have brought go at once (`rt6_purge_dflt_routers`). With 2 everything stays as it was.

use crate::Result;
use crate::netlink::{Netlink, RouteKind};
use crate::sysctl;
use std::collections::BTreeSet;

/// The value with which a device hears routers unless the namespace forwards, which is the kernel's default.
pub const UNLESS_FORWARDING: &str = "1";
/// The value with which it hears them in any case.
pub const ALWAYS: &str = "2";
/// RTPROT_RA: who makes the routes that advertisements bring (linux/rtnetlink.h).
const FROM_A_ROUTER: u8 = 9;

/// The parameter of a device that decides on it.
pub fn accept_ra(device: &str) -> String {
    format!("net/ipv6/conf/{device}/accept_ra")
}

/// Whether a device hears routers only as long as the namespace of the calling thread does not forward. False also where a
/// process hears them in the kernel's place, as NetworkManager and systemd-networkd do: these set it to 0.
pub fn end_with_forwarding(device: &str) -> bool {
    sysctl::get(&accept_ra(device)).is_ok_and(|value| value == UNLESS_FORWARDING)
}

/// What there is of routers in the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// devices that have something of a router's, or may have: a route that an advertisement has brought, or an IPv6 address
    /// with a lifetime
    pub on: BTreeSet<String>,
    /// there is an IPv6 default route that none of them has brought
    pub has_own_way_out: bool,
}

/// What has been heard of routers.
pub fn heard(netlink: &mut Netlink) -> Result<Heard> {
    #[derive(Default)]
    struct Routes {
        devices: BTreeSet<u32>,
        has_own_way_out: bool,
    }
    let found = netlink.fold_main_routes(|found: &mut Routes, route| match route.protocol {
        FROM_A_ROUTER => found.devices.extend(route.dev),
        _ => {
            found.has_own_way_out |= route.dst.is_ipv6() && route.dst.prefix() == 0 && route.kind == RouteKind::Unicast
        }
    })?;
    let mut heard = Heard::default();
    let mut devices = BTreeSet::new();
    for routes in found {
        devices.extend(routes.devices);
        heard.has_own_way_out |= routes.has_own_way_out;
    }
    let addresses = netlink.address_entries()?.into_iter().filter(|entry| entry.address.is_ipv6() && entry.ends);
    devices.extend(addresses.map(|entry| entry.index));
    if !devices.is_empty() {
        let links = netlink.links()?.into_iter().filter(|link| devices.contains(&link.index));
        heard.on = links.map(|link| link.name).collect();
    }
    Ok(heard)
}
