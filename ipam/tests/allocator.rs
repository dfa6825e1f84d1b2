//! The allocator against a naive model: never twice, all of them, in order, and with rest.
#![allow(clippy::unwrap_used, missing_docs)] // a broken set-up must fail the test at once

use ipam::pool::{candidates, choose};
use ipam::range::{Range, RangeSet};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;

const REST: u64 = 60;

/// One or two ranges of a subnet with 16 addresses, in either family.
fn sets() -> impl Strategy<Value = RangeSet> {
    let ends = || (0..16_u32, 0..16_u32).prop_map(|(a, b)| (a.min(b), a.max(b)));
    (any::<bool>(), ends(), proptest::option::of(ends()), 0..16_u32).prop_map(|(ipv4, first, second, gateway)| {
        let range = |subnet: u32, (start, end): (u32, u32)| {
            let ip = |host: u32| -> Option<IpAddr> {
                let text = if ipv4 { format!("10.0.{subnet}.{host}") } else { format!("fd00:{subnet}::{host:x}") };
                text.parse().ok()
            };
            let subnet = if ipv4 { format!("10.0.{subnet}.0/28") } else { format!("fd00:{subnet}::/124") };
            Range::new(subnet.parse().unwrap(), ip(start), ip(end), ip(gateway)).unwrap()
        };
        RangeSet::new([Some(range(1, first)), second.map(|ends| range(2, ends))].into_iter().flatten().collect())
            .unwrap()
    })
}

/// Every address of the set that may be handed out, found by looking at all 16 of each subnet.
fn usable(set: &RangeSet) -> Vec<IpAddr> {
    let all = set.ranges().iter().flat_map(|range| {
        let broadcast = range.subnet().is_ipv4().then(|| range.subnet().broadcast());
        range.subnet().iter().filter(move |ip| {
            (range.first()..=range.last()).contains(ip)
                && *ip != range.gateway()
                && *ip != range.subnet().network()
                && Some(*ip) != broadcast
        })
    });
    all.collect()
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    Give(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![4 => Just(Step::Take), 3 => (0..40_usize).prop_map(Step::Give), 1 => (0..50_u64).prop_map(Step::Wait)];
    vec(step, 0..80)
}

proptest! {
    #[test]
    fn candidates_are_each_usable_address_once(set in sets(), last in 0..40_usize) {
        let usable = usable(&set);
        let last = usable.get(last).copied();
        let found: Vec<IpAddr> = candidates(&set, last).collect();
        prop_assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), usable.iter().copied().collect());
        prop_assert_eq!(found.len(), usable.len());
        // In the order of the ranges, beginning behind the last one.
        let turn = last.map_or(0, |last| usable.iter().position(|ip| *ip == last).unwrap() + 1);
        prop_assert!(found.iter().eq(usable.iter().cycle().skip(turn).take(usable.len())));
    }

    #[test]
    fn chooses_as_the_model_does(set in sets(), steps in steps()) {
        let usable = usable(&set);
        let (mut now, mut last) = (0, None::<IpAddr>);
        let mut taken = BTreeSet::new();
        let mut released: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Wait(seconds) => now += seconds,
                Step::Give(which) => {
                    if let Some(ip) = taken.iter().nth(which).copied() {
                        taken.remove(&ip);
                        released.insert(ip, now);
                    }
                }
                Step::Take => {
                    let chosen = choose(
                        &set,
                        last,
                        |ip| Ok::<_, Infallible>(taken.contains(&ip)),
                        |ip| released.get(&ip).copied().filter(|when| now - when < REST),
                    ).unwrap();
                    let turn = last.and_then(|last| usable.iter().position(|ip| *ip == last)).map_or(0, |at| at + 1);
                    let free: Vec<IpAddr> = usable.iter().cycle().skip(turn).take(usable.len())
                        .filter(|ip| !taken.contains(*ip)).copied().collect();
                    let rested = free.iter().find(|ip| released.get(ip).is_none_or(|when| now - when >= REST));
                    let oldest = free.iter().map(|ip| released.get(ip).copied().unwrap_or(0)).min();
                    match (chosen, rested) {
                        (None, _) => prop_assert!(free.is_empty(), "{free:?} were free"),
                        (Some(ip), Some(rested)) => prop_assert_eq!(ip, *rested),
                        (Some(ip), None) => {
                            prop_assert!(free.contains(&ip));
                            prop_assert_eq!(released.get(&ip).copied(), oldest);
                        }
                    }
                    if let Some(ip) = chosen {
                        prop_assert!(taken.insert(ip), "{ip} was given twice");
                        last = Some(ip);
                    }
                }
            }
        }
    }
}

#[test]
fn starts_anew_where_the_last_address_is_of_no_range() {
    let set = RangeSet::new(vec![Range::new("10.1.0.0/24".parse().unwrap(), None, None, None).unwrap()]).unwrap();
    let last = Some("10.2.0.9".parse().unwrap());
    assert_eq!(candidates(&set, last).next(), "10.1.0.2".parse().ok());
    // A /64 is no problem, and neither is the end of the address space.
    let set = RangeSet::new(vec![Range::new("ffff:ffff:ffff:ffff::/64".parse().unwrap(), None, None, None).unwrap()])
        .unwrap();
    let last = Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
    assert_eq!(candidates(&set, last).next(), "ffff:ffff:ffff:ffff::2".parse().ok());
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let range = |subnet: &str, start: &str, end: &str, gateway: &str| {
        Range::new(subnet.parse().unwrap(), start.parse().ok(), end.parse().ok(), gateway.parse().ok())
    };
    for (subnet, start, end, gateway, word) in [
        ("10.1.0.5/24", "", "", "", "host bits set: for this length it is 10.1.0.0/24"),
        ("10.1.0.0/31", "", "", "", "too small"),
        ("fd00::/127", "", "", "", "too small"),
        ("10.1.0.0/24", "10.2.0.5", "", "", "rangeStart 10.2.0.5 is not in network 10.1.0.0/24"),
        ("10.1.0.0/24", "", "fd00::5", "", "rangeEnd fd00::5 is not in network"),
        ("10.1.0.0/24", "10.1.0.9", "10.1.0.8", "", "rangeStart 10.1.0.9 is after rangeEnd 10.1.0.8"),
        ("10.1.0.0/24", "", "", "fd00::1", "gateway fd00::1 is not of the family"),
    ] {
        let error = range(subnet, start, end, gateway).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let (one, two) = (range("10.1.0.0/24", "", "10.1.0.99", ""), range("10.1.0.0/24", "10.1.0.99", "", ""));
    let error = RangeSet::new(vec![one.unwrap(), two.unwrap()]).unwrap_err().to_string();
    assert!(error.contains("ranges 10.1.0.1-10.1.0.99 and 10.1.0.99-10.1.0.254 overlap"), "{error}");
    let (one, two) = (range("10.1.0.0/24", "", "", ""), range("fd00::/64", "", "", ""));
    assert!(RangeSet::new(vec![one.unwrap(), two.unwrap()]).unwrap_err().to_string().contains("mixed"));
    assert!(RangeSet::new(Vec::new()).unwrap_err().to_string().contains("empty"));
}
