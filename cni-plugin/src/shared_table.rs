//! nftables tables in which each attachment has elements of its own: its addresses, with a comment that says whose they
//! are. The rules are the same for all pods and are programmed once, so that a pod costs the same however many there are.

use cni_spec::AttachmentId;
use kernel::nft::{Element, Extent, Family, Field, Match, Nft, Set, Table, Value};
use kernel::{Error, Result};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Names of the sets of pod addresses, one for each family.
const PODS: [(&str, Field); 2] = [("pods4", Field::Ipv4Address), ("pods6", Field::Ipv6Address)];

/// Longest comment of an element (see [`Element::comment`]).
const LONGEST_OWNER: usize = 127;

/// How often a table that others remove at the same time is made anew.
pub(crate) const ATTEMPTS: usize = 32;

/// The sets of every such table.
pub(crate) fn pod_sets() -> BTreeMap<String, Set> {
    PODS.into_iter().map(|(name, field)| (name.into(), Set::addresses(field, []))).collect()
}

/// The name of the set for the family of `address`.
pub(crate) fn pods_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "pods4" } else { "pods6" }
}

/// One condition for each family: from a pod.
pub(crate) fn from_pods() -> [Match; 2] {
    PODS.map(|(name, _)| Match::SourceIn(name.into()))
}

/// One condition for each family: to a pod.
pub(crate) fn to_pods() -> [Match; 2] {
    PODS.map(|(name, _)| Match::DestinationIn(name.into()))
}

/// The comment on the elements of an attachment. Where the names are too long for one, digests stand for them.
pub(crate) fn owner(network: &str, id: &AttachmentId) -> String {
    let readable = format!("{network}/{}/{}", id.container_id, id.ifname);
    if readable.len() <= LONGEST_OWNER {
        return readable;
    }
    format!("#{}/{}", digest(network), digest(&format!("{}/{}", id.container_id, id.ifname)))
}

/// Whether the comment of an element names an attachment of `network`.
pub(crate) fn is_of(network: &str, owner: &str) -> bool {
    let begins = |prefix: String| owner.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with('/'));
    begins(network.into()) || begins(format!("#{}", digest(network)))
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Puts elements into a set of the table, which has it.
pub(crate) fn insert(table: &mut Table, set: &str, elements: impl IntoIterator<Item = Element>) {
    if let Some(set) = table.sets.get_mut(set) {
        set.elements.extend(elements);
    }
}

/// Puts an attachment's addresses into the sets of [`pod_sets`].
pub(crate) fn insert_pod(table: &mut Table, owner: &str, addresses: &[IpAddr]) {
    for address in addresses {
        insert(table, pods_of(*address), [Element::from(*address).commented(owner)]);
    }
}

/// A connection to tables that attachments share. A table that is passed has the elements of one attachment, or of several:
/// those with a comment are their owner's, others are everybody's.
pub(crate) struct Shared(Nft);

impl Shared {
    /// Connects.
    pub(crate) fn open() -> Result<Self> {
        Nft::open().map(Shared)
    }

    /// Puts the elements of `table` into the kernel's, in place of those with the same keys that have another owner. True if
    /// there was no such table, and it was made: then the elements of others are gone as well.
    pub(crate) fn put(&mut self, table: &Table) -> Result<bool> {
        let mut outcome = Ok(());
        for _attempt in 0..ATTEMPTS {
            outcome = self.put_into_sets(table);
            match &outcome {
                // With its elements in the same transaction, so that nobody's removal falls in between.
                Err(error) if error.errno == Errno::ENOENT => {
                    if self.0.create(table)? {
                        return Ok(true);
                    }
                }
                _ => break,
            }
        }
        outcome.map(|()| false)
    }

    /// In one transaction, which a flush comes before or after.
    fn put_into_sets(&mut self, table: &Table) -> Result<()> {
        let of = |is_owned: bool| -> Vec<(&str, Vec<Element>)> {
            let chosen = |element: &&Element| element.comment.is_empty() != is_owned;
            let sets = table.sets.iter().filter(|(_, set)| !set.interval);
            sets.map(|(name, set)| (&name[..], set.elements.iter().filter(chosen).cloned().collect())).collect()
        };
        self.0.put_elements(table, &slices(&of(true)), &slices(&of(false)))
    }

    /// How the prefixes in the kernel's table compare with those of `table`, of all its interval sets together.
    pub(crate) fn compare_prefixes(&mut self, table: &Table) -> Result<Extent> {
        let mut whole = Extent::Exactly;
        for (name, _) in table.sets.iter().filter(|(_, set)| set.interval) {
            match self.0.compare_prefixes(table, name)? {
                Extent::Exactly => {}
                Extent::More => whole = Extent::More,
                Extent::Otherwise => return Ok(Extent::Otherwise),
            }
        }
        Ok(whole)
    }

    /// Makes the prefixes of `table` the only ones in the kernel's.
    pub(crate) fn replace_prefixes(&mut self, table: &Table) -> Result<()> {
        let mut sets = table.sets.iter().filter(|(_, set)| set.interval);
        sets.try_for_each(|(name, _)| self.0.replace_prefixes(table, name))
    }

    /// Removes those elements of `table` that still have the same owner in the kernel; the others have found another one.
    pub(crate) fn remove(&mut self, table: &Table) -> Result<()> {
        for (name, set) in &table.sets {
            let mut own = Vec::new();
            for element in set.elements.iter().filter(|element| !element.comment.is_empty()) {
                let found = self.0.element(table, name, element)?;
                own.extend(found.filter(|found| found.comment == element.comment));
            }
            self.remove_elements(table, name, &own)?;
        }
        Ok(())
    }

    /// Removes the elements whose owner is not to be kept.
    pub(crate) fn retain(&mut self, table: &Table, keep: impl Fn(&str) -> bool) -> Result<()> {
        for (name, _) in table.sets.iter().filter(|(_, set)| !set.interval) {
            let gone = |found: &Element| !found.comment.is_empty() && !keep(&found.comment);
            let stale: Vec<Element> = self.0.elements(table, name)?.into_iter().filter(gone).collect();
            self.remove_elements(table, name, &stale)?;
        }
        Ok(())
    }

    /// What the kernel lacks of `table`, in words for CHECK; [`Shared::compare_prefixes`] is for the prefixes.
    pub(crate) fn differences(&mut self, table: &Table) -> Result<Vec<String>> {
        let name = format!("nft table {} {}", table.family, table.name);
        let mut differences = Vec::new();
        if !self.0.has_frame(table)? {
            differences.push(format!("{name} is missing, or its rules were changed"));
        }
        for (set, description) in table.sets.iter().filter(|(_, set)| !set.interval) {
            for element in &description.elements {
                if self.0.element(table, set, element)?.is_none_or(|found| found.comment != element.comment) {
                    let key = Element { comment: String::new(), ..element.clone() };
                    differences.push(format!("set {set} of {name} lacks {key}"));
                }
            }
        }
        Ok(differences)
    }

    /// Brings the kernel's table to hold the elements of `table` at least, and tells whether something was missing.
    pub(crate) fn restore(nft: &mut Nft, table: &Table) -> Result<bool> {
        let mut outcome = Ok(false);
        for _attempt in 0..ATTEMPTS {
            outcome = Shared::restore_once(nft, table);
            if !matches!(&outcome, Err(error) if error.errno == Errno::ENOENT) {
                break;
            }
        }
        outcome
    }

    fn restore_once(nft: &mut Nft, table: &Table) -> Result<bool> {
        if !nft.has_frame(table)? {
            // No record tells of what others may have there.
            let mut whole = table.clone();
            for (name, set) in table.sets.iter().filter(|(_, set)| !set.interval) {
                let keys: BTreeSet<&[Value]> = set.elements.iter().map(|element| &element.key[..]).collect();
                let others = nft.elements(table, name).unwrap_or_default();
                insert(&mut whole, name, others.into_iter().filter(|element| !keys.contains(&element.key[..])));
            }
            nft.replace(&whole)?;
            return Ok(true);
        }
        let mut additions = Vec::new();
        for (name, set) in table.sets.iter().filter(|(_, set)| !set.interval && !set.elements.is_empty()) {
            let present: BTreeSet<Vec<Value>> =
                nft.elements(table, name)?.into_iter().map(|element| element.key).collect();
            let missing: Vec<Element> =
                set.elements.iter().filter(|element| !present.contains(&element.key)).cloned().collect();
            if !missing.is_empty() {
                additions.push((&name[..], missing));
            }
        }
        nft.add_to_sets(table, &slices(&additions))?;
        Ok(!additions.is_empty())
    }

    /// The elements of a set.
    pub(crate) fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Element>> {
        self.0.elements(table, set)
    }

    /// Removes elements from a set; none is nothing to do.
    pub(crate) fn remove_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> Result<()> {
        if elements.is_empty() { Ok(()) } else { self.0.remove_elements(table, set, elements) }
    }

    /// Removes a table.
    pub(crate) fn delete(&mut self, table: &Table) -> Result<()> {
        self.0.delete(table.family, &table.name).map(drop)
    }

    /// Ends the connection after a removal.
    pub(crate) fn close(self) {
        self.0.close();
    }
}

fn slices<'a>(sets: &'a [(&'a str, Vec<Element>)]) -> Vec<(&'a str, &'a [Element])> {
    sets.iter().map(|(name, elements)| (*name, &elements[..])).collect()
}

/// A kernel without nftables holds nothing that could be removed.
pub(crate) fn unless_there_is_no_nftables(removed: Result<()>) -> Result<()> {
    match removed {
        Err(Error { errno: Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP, .. }) => Ok(()),
        other => other,
    }
}

/// A table for both families.
pub(crate) fn table(name: impl Into<String>) -> Table {
    Table { family: Family::Inet, name: name.into(), sets: pod_sets(), chains: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_fits_and_its_network_is_recognised() {
        let id = AttachmentId { container_id: "c".repeat(64), ifname: "eth0".into() };
        let long = "n".repeat(200);
        for network in ["cbr0", &long] {
            let owner = owner(network, &id);
            assert!(owner.len() <= LONGEST_OWNER && is_of(network, &owner), "{owner}");
            assert!(!is_of("cbr", &owner) && !is_of("cbr0x", &owner), "{owner}");
        }
        assert_ne!(owner(&long, &id), owner(&long, &AttachmentId { ifname: "eth1".into(), ..id.clone() }));
    }
}
