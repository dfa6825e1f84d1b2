//! What leases ask for, as a sum of parts: one for each peer.

use crate::lease::{Lease, Subnets};
use kernel::wireguard::PublicKey;
use kernel::{Mac, Overlay};
use std::collections::BTreeMap;

/// The kernel's state that leases ask for, and what could not be made of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// the state
    pub overlay: Overlay,
    /// peers left out, wholly or for one family: the reasons, by lease
    pub left_out: BTreeMap<Subnets, Vec<String>>,
    /// the places that more than one peer asks for, of which the first has them; and all that those want who are left out
    /// for that
    pub contested: Overlay,
}

impl Desired {
    /// The reasons why peers are left out, in the order of their subnets.
    pub fn reasons(&self) -> Vec<&String> {
        self.left_out.values().flatten().collect()
    }

    /// Puts in what makes one peer reachable, a part for each family, and leaves out what is another's already: two nodes that
    /// take turns at one entry would both be unreachable.
    pub(super) fn put(&mut self, lease: &Lease, parts: Vec<Overlay>) {
        let mut fitting = Vec::new();
        for part in parts {
            let taken = self.overlay.taken(&part);
            if taken == Overlay::default() {
                fitting.push(part);
            } else if self.overlay.contains(&taken) {
                // Two subnets of one node.
                self.contested.put(taken);
                fitting.push(part);
            } else {
                let reason = holders(&self.overlay, &taken);
                self.leave_out(lease, format!("it claims what is taken: {reason}"));
                // All of it waits for that one place to get free.
                self.contested.put(part);
            }
        }
        for part in fitting {
            self.overlay.put(part);
        }
    }

    /// This with the parts of changed peers exchanged: `gone` alone for those as they were, `new` alone for those as they are.
    /// None where it is no sum of parts, since peers contest an entry: then only the whole can tell.
    pub fn exchange(mut self, gone: &Desired, new: &Desired) -> Option<Desired> {
        let free = |part: &Desired| part.contested == Overlay::default() && !self.contested.meets(&part.overlay);
        if !(free(gone) && free(new) && self.overlay.take(&gone.overlay) && self.overlay.put(new.overlay.clone())) {
            return None;
        }
        self.left_out.retain(|subnets, _| !gone.left_out.contains_key(subnets));
        self.left_out.extend(new.left_out.iter().map(|(subnets, reasons)| (*subnets, reasons.clone())));
        Some(self)
    }

    pub(super) fn leave_out(&mut self, lease: &Lease, reason: String) {
        self.left_out.entry(lease.subnets).or_default().push(format!("{lease}: {reason}"));
    }
}

/// Who has the places that another claims, in one line.
fn holders(overlay: &Overlay, taken: &Overlay) -> String {
    let mut words = Vec::new();
    let other = |key: &&(String, Mac)| overlay.fdb.get(*key) != taken.fdb.get(*key);
    words.extend(
        taken.fdb.keys().filter(other).filter_map(|key| Some(format!("{} leads to {}", key.1, overlay.fdb.get(key)?))),
    );
    words.extend(taken.neighbours.keys().map(|(_, gateway)| format!("{gateway} is another node's")));
    let other = |place: &&(String, PublicKey)| overlay.peers.get(*place) != taken.peers.get(*place);
    words.extend(
        taken
            .peers
            .keys()
            .filter(other)
            .filter_map(|place| Some(format!("key {} is that of {}", place.1, overlay.peers.get(place)?.endpoint))),
    );
    words.extend(taken.routes.keys().map(|subnet| format!("{subnet} is another node's")));
    words.join(", ")
}
