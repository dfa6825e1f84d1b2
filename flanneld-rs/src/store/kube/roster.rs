//! Who holds which subnet, by the Node objects: a heartbeat changes nothing in it, and nothing of an object is kept but its lease.

use super::annotations::Names;
use super::node::Node;
use crate::family::Family;
use crate::lease::{Lease, Subnets};
use crate::store::snapshot::{Given, Listing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The nodes, and what they hold.
#[derive(Debug)]
pub(super) struct Roster {
    names: Arc<Names>,
    families: Vec<Family>,
    /// name of this node
    own: String,
    leases: BTreeMap<String, Arc<Lease>>,
    listing: Listing,
}

impl Roster {
    /// Without any node.
    pub(super) fn new(names: Arc<Names>, families: &[Family], own: &str) -> Self {
        Self {
            names,
            families: families.to_vec(),
            own: own.into(),
            leases: BTreeMap::new(),
            listing: Listing::default(),
        }
    }

    /// What is to be published.
    pub(super) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Takes in a node, new or changed. False: nothing about it matters.
    pub(super) fn put(&mut self, node: &Node) -> bool {
        let name = &node.metadata.name;
        let given = *name == self.own && self.give(node);
        let (lease, wrong) = match node.lease(&self.names, &self.families) {
            Ok(lease) => (lease, None),
            Err(malformed) => (None, Some(malformed)),
        };
        let lease = lease.map(|mut lease| {
            if *name == self.own {
                // As it is to be: what an administrator lays down while we run is then noticed as a difference.
                lease.announcement = self.names.overwritten(lease.announcement, node.annotations());
            }
            lease
        });
        let skipped = match wrong {
            Some(malformed) => {
                let is_news = self.listing.skipped.get(name) != Some(&malformed.0);
                self.listing.skip(name, malformed);
                is_news
            }
            None => self.listing.skipped.remove(name).is_some(),
        };
        self.seat(name, lease) || skipped || given
    }

    /// Takes out a node that is gone. False: it was none that matters.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let given = name == self.own && std::mem::take(&mut self.listing.given) != Given::default();
        let skipped = self.listing.skipped.remove(name).is_some();
        self.seat(name, None) || skipped || given
    }

    fn give(&mut self, own: &Node) -> bool {
        let given = Given {
            subnets: own.subnets(&self.families).unwrap_or_default(),
            public: self.names.laid_down(own.annotations()),
        };
        let is_news = given != self.listing.given;
        self.listing.given = given;
        is_news
    }

    fn seat(&mut self, name: &str, lease: Option<Lease>) -> bool {
        if self.leases.get(name).map(Arc::as_ref) == lease.as_ref() {
            return false;
        }
        let after = lease.map(Arc::new);
        if let Some(lease) = &after
            && !self.leases.contains_key(name)
            && self.listing.leases.get(&lease.subnets).is_none()
        {
            // Nobody else claims it, as nearly always: no search, which a first list of thousands would not bear.
            Arc::make_mut(&mut self.listing.leases).insert(lease.clone());
            self.leases.insert(name.into(), lease.clone());
            return true;
        }
        let seats = [self.leases.get(name), after.as_ref()].map(|lease| lease.map(|lease| lease.subnets));
        match after {
            Some(lease) => drop(self.leases.insert(name.into(), lease)),
            None => drop(self.leases.remove(name)),
        }
        seats.into_iter().flatten().for_each(|subnets| self.settle(&subnets));
        true
    }

    /// Subnets that two nodes claim, as when a machine came back under another name, are the first one's by name: whichever
    /// was heard of first, and until that one goes.
    fn settle(&mut self, subnets: &Subnets) {
        let listed = Arc::make_mut(&mut self.listing.leases);
        match self.leases.values().find(|lease| lease.subnets == *subnets) {
            Some(holder) => drop(listed.insert(holder.clone())),
            None => drop(listed.remove(subnets)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, number: u8, mac: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
                "flannel.alpha.coreos.com/public-ip": format!("192.168.64.{number}"),
            }},
            "spec": {"podCIDR": format!("10.5.{number}.0/24")},
        }))
        .unwrap()
    }

    fn roster() -> Roster {
        Roster::new(Arc::new(Names::new("flannel.alpha.coreos.com").unwrap()), &[Family::V4], "own")
    }

    fn held(roster: &Roster) -> Vec<String> {
        roster.listing().leases.iter().map(|lease| format!("{lease}")).collect()
    }

    #[test]
    fn only_what_matters_is_news() {
        let mut roster = roster();
        assert!(roster.put(&node("a", 1, "02:00:00:00:00:01")));
        assert!(!roster.put(&node("a", 1, "02:00:00:00:00:01")));
        assert!(roster.put(&node("a", 1, "02:00:00:00:00:02")));
        assert!(!roster.put(&Node::default()) && !roster.remove("b"));
        // Re-created with another subnet.
        assert!(roster.put(&node("a", 2, "02:00:00:00:00:02")));
        assert_eq!(held(&roster), ["10.5.2.0/24 of 192.168.64.2"]);
        assert!(roster.remove("a") && held(&roster).is_empty());
    }

    #[test]
    fn a_contested_subnet_goes_to_the_same_node_in_any_order() {
        let (one, mut other) = (node("a", 1, "02:00:00:00:00:01"), node("b", 1, "02:00:00:00:00:02"));
        other.metadata.name = "b".into();
        for order in [[&one, &other], [&other, &one]] {
            let mut roster = roster();
            order.iter().for_each(|node| assert!(roster.put(node)));
            let holder = |roster: &Roster| roster.listing().leases.iter().next().cloned().unwrap().announcement;
            assert_eq!(holder(&roster), one.lease(&roster.names, &[Family::V4]).unwrap().unwrap().announcement);
            roster.remove("a");
            assert_eq!(holder(&roster), other.lease(&roster.names, &[Family::V4]).unwrap().unwrap().announcement);
        }
    }

    #[test]
    fn what_is_given_to_the_own_node_is_told() {
        let mut roster = roster();
        let own = node("own", 3, "02:00:00:00:00:03");
        assert!(roster.put(&own));
        assert_eq!(crate::lease::key(&roster.listing().given.subnets), "10.5.3.0-24");
        assert!(roster.remove("own") && roster.listing().given == Given::default());
    }
}
