//! Whether the kernel still has what it was brought to: a question that mostly is answered with yes, about tables of thousands of
//! entries, which need neither be copied nor sorted for it.

use crate::netlink::Netlink;
use crate::observe::{Finding, Frame, classify};
use crate::{Overlay, Result, Scope, diff};
use std::hash::{BuildHasher, Hash, RandomState};

/// Whether everything of ours is as in `desired`: whether from what [`crate::observe()`] would see there is nothing to do, as
/// [`crate::diff()`] tells, to get there. Reads only.
pub fn is_intact(netlink: &mut Netlink, scope: &Scope, desired: &Overlay) -> Result<bool> {
    let Overlay { links, addresses, routes, refusals, neighbours, fdb, peers: _, allowed: _, drift } = desired;
    let frame = Frame::observe(netlink, scope)?;
    let wanted =
        Overlay { links: links.clone(), addresses: addresses.clone(), drift: drift.clone(), ..Overlay::default() };
    if !diff(&frame.overlay, &wanted).is_empty() {
        return Ok(false);
    }
    let number = Numbering::default();
    let (mut found_neighbours, mut found_fdb) = (Tally::default(), Tally::default());
    for (index, name) in &frame.own {
        found_neighbours.add(netlink.fold_neighbours(Some(*index), |found: &mut Tally, neighbour| {
            if let Some(mac) = neighbour.mac.filter(|_| neighbour.permanent) {
                found.count(number.of((name.as_str(), neighbour.ip, mac)));
            }
        })?);
        found_fdb.add(netlink.fold_fdb(*index, |found: &mut Tally, entry| {
            if let Some(dst) = entry.dst.filter(|_| entry.permanent) {
                found.count(number.of((name.as_str(), entry.mac, dst)));
            }
        })?);
    }
    if found_neighbours != neighbours.iter().map(|((name, ip), mac)| number.of((name.as_str(), *ip, *mac))).collect()
        || found_fdb != fdb.iter().map(|((name, mac), dst)| number.of((name.as_str(), *mac, *dst))).collect()
    {
        return Ok(false);
    }
    let found = netlink.fold_main_routes(|found: &mut Routes, entry| {
        let dev = entry.dev.and_then(|index| frame.names.get(&index)).map(String::as_str);
        match classify(&entry, dev, scope) {
            Finding::Foreign => {}
            Finding::Ours(route) => found.ours.count(number.of((entry.dst, &route))),
            Finding::Refusal => found.refusals.count(number.of((entry.dst, entry.kind))),
            Finding::Stray => found.stray = true,
        }
    })?;
    let mut all = Routes::default();
    for Routes { ours, refusals, stray } in found {
        all.ours.add(ours);
        all.refusals.add(refusals);
        all.stray |= stray;
    }
    Ok(!all.stray
        && all.ours == routes.iter().map(|(dst, route)| number.of((*dst, route))).collect()
        && all.refusals == refusals.iter().map(|(dst, kind)| number.of((*dst, *kind))).collect())
}

#[derive(Default)]
struct Routes {
    ours: Tally,
    refusals: Tally,
    /// there is one that has to go
    stray: bool,
}

/// Gives each entry a number that nobody can foresee: its keys are made for one comparison.
#[derive(Default)]
struct Numbering(RandomState);

impl Numbering {
    fn of(&self, entry: impl Hash) -> u64 {
        self.0.hash_one(entry)
    }
}

/// Entries in any order: how many there are, and the sum of their numbers. It is the same for the same entries, and for others
/// once in 2^64 times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    entries: u64,
    sum: u64,
}

impl Tally {
    fn count(&mut self, number: u64) {
        self.add(Tally { entries: 1, sum: number });
    }

    fn add(&mut self, other: Tally) {
        self.entries += other.entries;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl FromIterator<u64> for Tally {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut tally = Tally::default();
        numbers.into_iter().for_each(|number| tally.count(number));
        tally
    }
}
