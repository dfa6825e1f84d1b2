//! Which address comes next: round robin, and no address again that somebody may still remember.

use crate::address::{address, number};
use crate::range::RangeSet;
use std::net::IpAddr;

/// Every address that `set` may hand out, once, in the order of preference: from the one after `last` (the address that
/// was reserved most recently) to the end of its range, through the other ranges, around to `last` itself.
pub fn candidates(set: &RangeSet, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let ranges = set.ranges();
    let current = last.and_then(|last| ranges.iter().position(|range| range.contains(last)));
    let begin = current.unwrap_or(0);
    let rotated = ranges.iter().cycle().skip(begin).take(ranges.len());
    // The range that holds `last` is visited twice: first what follows `last`, in the end what leads up to it.
    let resumed = current.and(last);
    let head = ranges.get(begin).zip(resumed).map(|(range, last)| (range, number(last)));
    let after = head.map(|(range, last)| (range, last, number(range.last()), 1));
    let whole = rotated
        .skip(usize::from(resumed.is_some()))
        .map(|range| (range, number(range.first()), number(range.last()), 0));
    let until = head.map(|(range, last)| (range, number(range.first()), last, 0));
    after.into_iter().chain(whole).chain(until).flat_map(|(range, from, to, skip)| {
        let family = range.first();
        (from..=to)
            .skip(skip)
            .map(move |number| address(number, family))
            .filter(move |ip| range.reserved_for(*ip).is_none())
    })
}

/// The address to hand out next: the first candidate that is free and was not released lately (`released` is none). If
/// all that is free was released lately, the one that was released first. None: everything is taken.
///
/// `taken` may have to look at the disk; its error ends the search. `released` gives the time of a recent release, in any
/// unit that orders.
pub fn choose<T: Ord, E>(
    set: &RangeSet,
    last: Option<IpAddr>,
    mut taken: impl FnMut(IpAddr) -> Result<bool, E>,
    released: impl Fn(IpAddr) -> Option<T>,
) -> Result<Option<IpAddr>, E> {
    let mut resting = Vec::new();
    for candidate in candidates(set, last) {
        match released(candidate) {
            Some(when) => resting.push((when, candidate)),
            None if !taken(candidate)? => return Ok(Some(candidate)),
            None => {}
        }
    }
    resting.sort();
    for (_, candidate) in resting {
        if !taken(candidate)? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}
