//! An overlay as the sum of its parts: what a node has for itself, and what it has for each peer. An entry's *place* is what
//! there is only one of in the kernel: the name of a device, the destination of a route, the key of a table's row.

use crate::{Drift, Overlay};
use std::collections::BTreeMap;

impl Overlay {
    /// Whether a place of `part` is taken here, by whatever.
    pub fn meets(&self, part: &Overlay) -> bool {
        !self.taken(part).is_vacant()
    }

    /// The entries of `part` whose places are taken here, by whatever.
    #[must_use]
    pub fn taken(&self, part: &Overlay) -> Overlay {
        let Overlay { links, addresses, routes, refusals, neighbours, fdb, peers, allowed, drift: _ } = part;
        Overlay {
            links: common(&self.links, links),
            addresses: addresses.iter().filter(|address| self.addresses.contains(address)).cloned().collect(),
            routes: common(&self.routes, routes),
            refusals: common(&self.refusals, refusals),
            neighbours: common(&self.neighbours, neighbours),
            fdb: common(&self.fdb, fdb),
            peers: common(&self.peers, peers),
            allowed: common(&self.allowed, allowed),
            drift: Drift::default(),
        }
    }

    /// Whether all entries of `part` are here just so.
    pub fn contains(&self, part: &Overlay) -> bool {
        let Overlay { links, addresses, routes, refusals, neighbours, fdb, peers, allowed, drift: _ } = part;
        holds(&self.links, links)
            && addresses.is_subset(&self.addresses)
            && holds(&self.routes, routes)
            && holds(&self.refusals, refusals)
            && holds(&self.neighbours, neighbours)
            && holds(&self.fdb, fdb)
            && holds(&self.peers, peers)
            && holds(&self.allowed, allowed)
    }

    /// Puts a part in. False if it took the place of something; then this is a sum no more.
    pub fn put(&mut self, part: Overlay) -> bool {
        let Overlay { links, addresses, routes, refusals, neighbours, fdb, peers, allowed, drift: _ } = part;
        let mut free = put_in(&mut self.links, links);
        for address in addresses {
            free &= self.addresses.insert(address);
        }
        free &= put_in(&mut self.refusals, refusals);
        free &= put_in(&mut self.routes, routes);
        free &= put_in(&mut self.neighbours, neighbours);
        free &= put_in(&mut self.fdb, fdb);
        free &= put_in(&mut self.peers, peers);
        free & put_in(&mut self.allowed, allowed)
    }

    /// Takes a part out. False if it was not in here just so; then this is a sum no more.
    pub fn take(&mut self, part: &Overlay) -> bool {
        let Overlay { links, addresses, routes, refusals, neighbours, fdb, peers, allowed, drift: _ } = part;
        let mut found = take_out(&mut self.links, links);
        for address in addresses {
            found &= self.addresses.remove(address);
        }
        found &= take_out(&mut self.refusals, refusals);
        found &= take_out(&mut self.routes, routes);
        found &= take_out(&mut self.neighbours, neighbours);
        found &= take_out(&mut self.fdb, fdb);
        found &= take_out(&mut self.peers, peers);
        found & take_out(&mut self.allowed, allowed)
    }

    fn is_vacant(&self) -> bool {
        *self == Overlay::default()
    }
}

/// The entries of `part`, which is the smaller one, whose keys `whole` has too.
fn common<K: Ord + Clone, V: Clone>(whole: &BTreeMap<K, V>, part: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    let taken = part.iter().filter(|(key, _)| whole.contains_key(key));
    taken.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn holds<K: Ord, V: PartialEq>(whole: &BTreeMap<K, V>, part: &BTreeMap<K, V>) -> bool {
    part.iter().all(|(key, value)| whole.get(key) == Some(value))
}

fn put_in<K: Ord, V>(whole: &mut BTreeMap<K, V>, part: BTreeMap<K, V>) -> bool {
    let mut free = true;
    for (key, value) in part {
        free &= whole.insert(key, value).is_none();
    }
    free
}

fn take_out<K: Ord, V: PartialEq>(whole: &mut BTreeMap<K, V>, part: &BTreeMap<K, V>) -> bool {
    let mut found = true;
    for (key, value) in part {
        found &= whole.remove(key).as_ref() == Some(value);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mac, Route};

    fn part(number: u8, dev: &str) -> Overlay {
        let mut part = Overlay::default();
        let dst = format!("10.5.{number}.0/24").parse().unwrap();
        part.routes.insert(dst, Route { via: None, dev: dev.into(), onlink: false });
        part.neighbours.insert((dev.into(), [10, 5, number, 0].into()), Mac([2, 0, 0, 0, 0, number]));
        part.addresses.insert((dev.into(), dst));
        part
    }

    #[test]
    fn what_is_put_in_can_be_taken_out() {
        let mut sum = Overlay::default();
        assert!(sum.put(part(1, "a")) && sum.put(part(2, "a")));
        assert!(sum.contains(&part(1, "a")) && !sum.contains(&part(1, "b")));
        assert!(sum.meets(&part(1, "b")) && !sum.meets(&part(3, "a")));
        assert_eq!(sum.taken(&part(1, "b")).routes, part(1, "b").routes);
        assert!(sum.take(&part(1, "a")));
        assert_eq!(sum, part(2, "a"));
        assert!(!sum.take(&part(1, "a")), "it is gone already");
        assert!(!sum.put(part(2, "b")), "the route's place is taken");
    }
}
