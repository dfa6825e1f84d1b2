//! From the observed to the desired state.

use crate::{Change, LinkUpdate, Overlay, ROUTE_PROTOCOL, StrayRoute, Tunnel};
use std::collections::BTreeSet;

/// The steps from `actual` to `desired`, in the order in which they must be carried out: what must not leave by the default
/// route is refused first, what is in the way goes next, a device comes before what is on it, and the way to a peer's gateway before the route that uses it. Nothing is removed
/// that a later step would only put back.
pub fn diff(actual: &Overlay, desired: &Overlay) -> Vec<Change> {
    let doomed = doomed_links(actual, desired);
    // With a device everything on it goes, so that there is nothing to remove from it and everything to add.
    let stays = |device: &str| !doomed.contains(device);
    let refused = desired.refusals.iter().filter(|(dst, how)| actual.refusals.get(dst) != Some(how));
    let mut changes: Vec<Change> = refused.map(|(dst, how)| Change::SetRefusal(*dst, *how)).collect();

    let strays = |late: bool| {
        let left = actual.drift.strays.difference(&desired.drift.strays);
        let left = left.filter(move |stray| is_replaced_in_place(stray, desired) == late);
        left.filter(|stray| stray.dev.as_deref().is_none_or(stays)).cloned().map(Change::DeleteStray)
    };
    changes.extend(strays(false));
    for (dst, route) in &actual.routes {
        // IPv6 refuses a gateway to which a route leads over another device, be it the one that is about to be replaced.
        if stays(&route.dev) && desired.routes.get(dst).is_none_or(|wanted| wanted.dev != route.dev) {
            changes.push(Change::DeleteRoute(*dst, route.clone()));
        }
    }
    for (key, dst) in &actual.fdb {
        if stays(&key.0) && !desired.fdb.contains_key(key) {
            changes.push(Change::DeleteFdb(key.0.clone(), key.1, *dst));
        }
    }
    let updates = link_updates(actual, desired, &doomed);
    // The kernel forgets the neighbours on a device whose address changes.
    let remembers =
        |device: &str| stays(device) && !updates.iter().any(|(name, update)| *name == device && update.mac.is_some());
    for key in actual.neighbours.keys() {
        if remembers(&key.0) && !desired.neighbours.contains_key(key) {
            changes.push(Change::DeleteNeighbour(key.0.clone(), key.1));
        }
    }
    for entry in actual.addresses.difference(&desired.addresses).filter(|entry| stays(&entry.0)) {
        changes.push(Change::DeleteAddress(entry.0.clone(), entry.1));
    }
    changes.extend(doomed.iter().map(|name| Change::DeleteLink((*name).to_owned())));

    for (name, link) in &desired.links {
        if !actual.links.contains_key(name) || !stays(name) {
            changes.push(Change::CreateLink(name.clone(), link.clone()));
        }
    }
    changes.extend(updates.iter().map(|(name, update)| Change::UpdateLink((*name).to_owned(), update.clone())));
    for (name, link) in &desired.links {
        let found = actual.links.get(name).filter(|_| stays(name)).and_then(Tunnel::tx_checksum);
        let wanted = link.tx_checksum().filter(|wanted| found != Some(*wanted));
        changes.extend(wanted.map(|on| Change::SetTxChecksum(name.clone(), on)));
    }
    for entry in &desired.addresses {
        if !(stays(&entry.0) && actual.addresses.contains(entry)) {
            changes.push(Change::AddAddress(entry.0.clone(), entry.1));
        }
    }
    for (key, mac) in &desired.neighbours {
        if !(remembers(&key.0) && actual.neighbours.get(key) == Some(mac)) {
            changes.push(Change::SetNeighbour(key.0.clone(), key.1, *mac));
        }
    }
    for (key, dst) in &desired.fdb {
        if !(stays(&key.0) && actual.fdb.get(key) == Some(dst)) {
            changes.push(Change::SetFdb(key.0.clone(), key.1, *dst));
        }
    }
    for (dst, route) in &desired.routes {
        if !(stays(&route.dev) && actual.routes.get(dst) == Some(route)) {
            let adopted = |stray: &StrayRoute| stray.dst == *dst && is_replaced_in_place(stray, desired);
            let ours = actual.routes.get(dst).is_some_and(|found| found.dev == route.dev);
            changes.push(if stays(&route.dev) && (ours || actual.drift.strays.iter().any(adopted)) {
                Change::ReplaceRoute(*dst, route.clone())
            } else {
                Change::AddRoute(*dst, route.clone())
            });
        }
    }
    changes.extend(strays(true));
    let left = actual.refusals.iter().filter(|(dst, _)| !desired.refusals.contains_key(dst));
    changes.extend(left.map(|(dst, how)| Change::DeleteRefusal(*dst, *how)));
    changes
}

/// Whether the desired route will take the place of this one without a gap, so that it may stay until then. A marked one
/// could not be told from the right one afterwards; and see above for one over another device.
fn is_replaced_in_place(stray: &StrayRoute, desired: &Overlay) -> bool {
    let wanted = desired.routes.get(&stray.dst).map(|route| route.dev.as_str());
    stray.protocol != ROUTE_PROTOCOL && stray.dev.is_some() && stray.dev.as_deref() == wanted
}

/// The devices that must go, for good or to be made anew.
fn doomed_links<'a>(actual: &'a Overlay, desired: &'a Overlay) -> BTreeSet<&'a str> {
    let obstacles = actual.drift.obstacles.difference(&desired.drift.obstacles).map(String::as_str);
    let unwanted = actual
        .links
        .iter()
        .filter(|(name, link)| desired.links.get(*name).is_none_or(|wanted| is_another_device(link, wanted)));
    obstacles.chain(unwanted.map(|(name, _)| name.as_str())).collect()
}

/// Whether a device would have to be made anew to become the other.
fn is_another_device(found: &Tunnel, wanted: &Tunnel) -> bool {
    found.with(wanted.mtu(), wanted.mac(), wanted.tx_checksum()) != *wanted
}

fn link_updates<'a>(actual: &Overlay, desired: &'a Overlay, doomed: &BTreeSet<&str>) -> Vec<(&'a str, LinkUpdate)> {
    let update = |(name, wanted): (&'a String, &Tunnel)| {
        let found = actual.links.get(name).filter(|_| !doomed.contains(name.as_str()))?;
        let update = LinkUpdate {
            mac: wanted.mac().filter(|mac| found.mac() != Some(*mac)),
            mtu: (found.mtu() != wanted.mtu()).then_some(wanted.mtu()),
            up: actual.drift.down.contains(name) && !desired.drift.down.contains(name),
        };
        (update != LinkUpdate::default()).then_some((name.as_str(), update))
    };
    desired.links.iter().filter_map(update).collect()
}
