//! What a notification says: nothing that anybody has to look at, if it only shows what is wanted anyway.
//!
//! Notifications come in the order of the changes. If an entry is not as it should be, then the last one about it says so, and
//! that one counts; those before it need not.

use crate::netlink::{FdbEntry, Netlink, Notice};
use crate::observe::{Finding, classify, is_link_local};
use crate::{Overlay, Result, Scope};
use std::collections::BTreeMap;

/// RTM_NEWNETCONF of linux/rtnetlink.h.
const NEW_NETCONF: u16 = 80;
/// NETCONFA_IFINDEX and NETCONFA_FORWARDING of linux/netconf.h.
const NETCONF_INDEX: u16 = 1;
const NETCONF_FORWARDING: u16 = 2;
/// NETCONFA_IFINDEX_ALL
const ALL_DEVICES: i32 = -1;
/// AF_BRIDGE, under which forwarding entries are told.
const AF_BRIDGE: u8 = 7;

/// Which parts of the kernel's configuration changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// network devices: made, removed, up, down, renamed, ...
    pub links: bool,
    /// addresses of devices
    pub addresses: bool,
    /// routes
    pub routes: bool,
    /// permanent neighbour or forwarding entries, or any that went away
    pub neighbours: bool,
    /// links, addresses or routes that are no part of what is expected, if anything is
    pub others: bool,
    /// nftables, of whatever table
    pub nftables: bool,
    /// forwarding was switched off
    pub forwarding: bool,
}

impl Wake {
    /// Anything may have changed.
    pub const EVERYTHING: Self = Wake {
        links: true,
        addresses: true,
        routes: true,
        neighbours: true,
        others: true,
        nftables: true,
        forwarding: true,
    };

    /// Whether nothing changed.
    pub fn is_empty(self) -> bool {
        self == Wake::default()
    }

    /// Whether something changed of what [`crate::observe()`] looks at.
    pub fn touches_overlay(self) -> bool {
        self.links || self.addresses || self.routes || self.neighbours
    }

    /// Adds what else changed.
    pub fn merge(&mut self, other: Wake) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
        self.others |= other.others;
        self.nftables |= other.nftables;
        self.forwarding |= other.forwarding;
    }
}

/// The state that was brought about last. A notification that shows a piece of it is no news.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// what the kernel has of the overlay
    pub overlay: &'a Overlay,
    /// what counts as ours
    pub scope: &'a Scope,
    /// names of the overlay's devices, and of those that its routes lead over, by index
    pub devices: &'a BTreeMap<u32, String>,
}

impl<'a> Expected<'a> {
    /// The devices that matter to `overlay`, which is in place.
    pub fn devices(netlink: &mut Netlink, overlay: &Overlay) -> Result<BTreeMap<u32, String>> {
        let matters = |name: &str| {
            overlay.links.contains_key(name)
                || overlay.links.values().any(|link| link.underlay() == Some(name))
                || overlay.routes.values().any(|route| route.dev == name)
        };
        let links = netlink.links()?.into_iter().filter(|link| matters(&link.name));
        Ok(links.map(|link| (link.index, link.name)).collect())
    }

    /// The device of ours with this index.
    fn tunnel(&self, index: u32) -> Option<&'a String> {
        self.devices.get(&index).filter(|name| self.overlay.links.contains_key(*name))
    }
}

/// What a message of rtnetlink says. Nothing expected: everything that is configuration counts.
pub(super) fn of_route(kind: u16, payload: &[u8], expected: Option<&Expected<'_>>) -> Wake {
    let mut wake = Wake::default();
    let present = matches!(kind, libc::RTM_NEWADDR | libc::RTM_NEWROUTE | libc::RTM_NEWNEIGH);
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => match expected.map(|expected| concerns_link(payload, expected)) {
            Some(false) => wake.others = true,
            _ => wake.links = true,
        },
        libc::RTM_NEWADDR | libc::RTM_DELADDR => match expected.map(|expected| address(payload, present, expected)) {
            Some(verdict) => verdict.tell(&mut wake.addresses, &mut wake.others),
            None => wake.addresses = true,
        },
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => match expected.map(|expected| route(payload, present, expected)) {
            Some(verdict) => verdict.tell(&mut wake.routes, &mut wake.others),
            None => wake.routes = true,
        },
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            wake.neighbours = match expected {
                Some(expected) if payload.first() == Some(&AF_BRIDGE) => forwarding_entry(payload, present, expected),
                Some(expected) => neighbour(payload, present, expected),
                None => !present || is_permanent(payload),
            };
        }
        NEW_NETCONF => wake.forwarding = switches_forwarding_off(payload),
        _ => {}
    }
    wake
}

/// What is to be made of a notification.
enum Verdict {
    /// it shows what is wanted
    Fine,
    /// it may be about ours
    Look,
    /// it is about somebody else's
    Foreign,
}

impl Verdict {
    fn tell(self, ours: &mut bool, others: &mut bool) {
        match self {
            Verdict::Fine => {}
            Verdict::Look => *ours = true,
            Verdict::Foreign => *others = true,
        }
    }

    fn look_unless(fine: bool) -> Self {
        if fine { Verdict::Fine } else { Verdict::Look }
    }
}

fn concerns_link(payload: &[u8], expected: &Expected<'_>) -> bool {
    let Some(link) = Notice::link(payload) else { return true };
    // By name too: a device in a place that one of ours has to take.
    expected.devices.contains_key(&link.index)
        || expected.scope.devices.contains(&link.name)
        || expected.devices.values().any(|name| *name == link.name)
        || link.alias == crate::LINK_ALIAS
}

fn address(payload: &[u8], present: bool, expected: &Expected<'_>) -> Verdict {
    let Some((index, address)) = Notice::address(payload) else { return Verdict::Look };
    match (expected.tunnel(index), expected.devices.contains_key(&index)) {
        (Some(_), _) if is_link_local(address.ip()) => Verdict::Fine,
        (Some(name), _) => {
            Verdict::look_unless(expected.overlay.addresses.contains(&(name.clone(), address)) == present)
        }
        (None, true) => Verdict::Look,
        (None, false) => Verdict::Foreign,
    }
}

fn route(payload: &[u8], present: bool, expected: &Expected<'_>) -> Verdict {
    let Some(entry) = Notice::route(payload) else { return Verdict::Fine };
    if entry.table != u32::from(libc::RT_TABLE_MAIN) {
        return Verdict::Fine;
    }
    let dev = entry.dev.and_then(|index| expected.devices.get(&index)).map(String::as_str);
    match (expected.overlay.routes.get(&entry.dst), classify(&entry, dev, expected.scope)) {
        (_, Finding::Refusal) => {
            let wanted = expected.overlay.refusals.get(&entry.dst) == Some(&entry.kind);
            Verdict::look_unless(wanted == present)
        }
        (Some(wanted), Finding::Ours(found)) => Verdict::look_unless((*wanted == found) == present),
        // In the way of ours, or out of it.
        (Some(_), _) => Verdict::Look,
        (None, Finding::Foreign) => Verdict::Foreign,
        (None, _) => Verdict::look_unless(!present),
    }
}

/// Whether a forwarding entry may be otherwise than it should be.
fn forwarding_entry(payload: &[u8], present: bool, expected: &Expected<'_>) -> bool {
    let Some((index, FdbEntry { mac, dst: Some(dst), permanent })) = Notice::forwarding_entry(payload) else {
        return false;
    };
    let Some(name) = expected.tunnel(index) else { return false };
    match expected.overlay.fdb.get(&(name.clone(), mac)) {
        Some(wanted) if present => !(permanent && *wanted == dst),
        Some(wanted) => *wanted == dst,
        None => present && permanent,
    }
}

/// Whether a neighbour may be otherwise than it should be. What the kernel finds out by itself is traffic.
fn neighbour(payload: &[u8], present: bool, expected: &Expected<'_>) -> bool {
    let Some(found) = Notice::neighbour(payload) else { return false };
    let Some(name) = expected.tunnel(found.index) else { return false };
    match expected.overlay.neighbours.get(&(name.clone(), found.ip)) {
        Some(wanted) => !(present && found.permanent && found.mac == Some(*wanted)),
        None => present && found.permanent,
    }
}

/// Resolution by ARP and learning by bridges are traffic and no configuration. ndm_state is at offset 8 of ndmsg.
fn is_permanent(payload: &[u8]) -> bool {
    let state = payload.get(8..10).and_then(|state| state.first_chunk()).map(|state| u16::from_ne_bytes(*state));
    state.is_none_or(|state| state & libc::NUD_PERMANENT != 0)
}

/// Per device it is somebody's choice; for all devices at once it cuts pods off.
fn switches_forwarding_off(payload: &[u8]) -> bool {
    let attributes = payload.get(4..).unwrap_or_default();
    let value = |kind| Notice::attribute(attributes, kind).map(i32::from_ne_bytes);
    value(NETCONF_INDEX) == Some(ALL_DEVICES) && value(NETCONF_FORWARDING) == Some(0)
}

pub(super) fn of_nftables(_kind: u16, _payload: &[u8], _expected: Option<&Expected<'_>>) -> Wake {
    Wake { nftables: true, ..Wake::default() }
}
