//! nftables tables in which each attachment has elements of its own: its addresses, with a comment that says whose they
//! are. The rules are the same for all pods and are programmed once, so that a pod costs the same however many there are.

use cni_spec::AttachmentId;
use kernel::nft::{Element, Family, Field, Match, Nft, Set, Table};
use kernel::{Error, Result};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Names of the sets of pod addresses, one for each family.
const PODS: [(&str, Field); 2] = [("pods4", Field::Ipv4Address), ("pods6", Field::Ipv6Address)];

/// Longest comment of an element (see [`Element::comment`]).
const LONGEST_OWNER: usize = 127;

/// How often a table that others remove at the same time is made anew.
const ATTEMPTS: usize = 8;

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

/// A table that attachments share.
pub(crate) struct SharedTable {
    table: Table,
    nft: Nft,
}

impl SharedTable {
    /// Connects; `table` has the sets of [`pod_sets`], all of them empty.
    pub(crate) fn open(table: Table) -> Result<Self> {
        Ok(SharedTable { table, nft: Nft::open()? })
    }

    /// Puts elements into a set; the table is made if it is missing.
    pub(crate) fn put(&mut self, set: &str, elements: &[Element]) -> Result<()> {
        let mut outcome = Ok(());
        for _attempt in 0..ATTEMPTS {
            outcome = self.nft.put_elements(&self.table, set, elements);
            match &outcome {
                Err(error) if error.errno == Errno::ENOENT => self.nft.create(&self.table)?,
                _ => break,
            };
        }
        outcome
    }

    /// Adds elements to a set, of which those that are there, or overlap one that is, are left as they are.
    pub(crate) fn add(&mut self, set: &str, elements: &[Element]) -> Result<()> {
        match self.nft.add_elements(&self.table, set, elements) {
            Err(Error { errno: Errno::EEXIST | Errno::ENOTEMPTY, .. }) => Ok(()),
            other => other,
        }
    }

    /// Makes `addresses` those of `owner`.
    pub(crate) fn put_pod(&mut self, owner: &str, addresses: &[IpAddr]) -> Result<()> {
        for (set, elements) in by_family(owner, addresses) {
            self.put(set, &elements)?;
        }
        Ok(())
    }

    /// Removes what is `owner`'s: of `addresses` if there are any, else whatever there is. An address that has a new owner
    /// stays.
    pub(crate) fn remove_pod(mut self, owner: &str, addresses: &[IpAddr]) -> Result<()> {
        let removed = if addresses.is_empty() {
            self.retain(|found| found != owner)
        } else {
            self.remove_known(owner, addresses)
        };
        if removed? {
            self.close();
        }
        Ok(())
    }

    fn remove_known(&mut self, owner: &str, addresses: &[IpAddr]) -> Result<bool> {
        let mut removed = false;
        for (set, elements) in by_family(owner, addresses) {
            let mut own = Vec::new();
            for element in elements {
                own.extend(self.nft.element(&self.table, set, &element)?.filter(|found| found.comment == owner));
            }
            if !own.is_empty() {
                self.nft.remove_elements(&self.table, set, &own)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// Removes the pod addresses whose owner is not to be kept, and says whether there were any.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<bool> {
        let mut removed = false;
        for (set, _) in PODS {
            let stale: Vec<Element> =
                self.nft.elements(&self.table, set)?.into_iter().filter(|found| !keep(&found.comment)).collect();
            if !stale.is_empty() {
                self.nft.remove_elements(&self.table, set, &stale)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// Of `addresses`, those that are not `owner`'s.
    pub(crate) fn missing(&mut self, owner: &str, addresses: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut missing = Vec::new();
        for address in addresses {
            let found = self.nft.element(&self.table, pods_of(*address), &Element::from(*address))?;
            if found.is_none_or(|found| found.comment != owner) {
                missing.push(*address);
            }
        }
        Ok(missing)
    }

    /// The elements of a set.
    pub(crate) fn elements(&mut self, set: &str) -> Result<Vec<Element>> {
        self.nft.elements(&self.table, set)
    }

    /// Removes elements from a set.
    pub(crate) fn remove(&mut self, set: &str, elements: &[Element]) -> Result<()> {
        self.nft.remove_elements(&self.table, set, elements)
    }

    /// Whether the rules are what they should be; the elements may be anything.
    pub(crate) fn has_its_rules(&mut self) -> Result<bool> {
        self.nft.has_frame(&self.table)
    }

    /// Ends the connection after a removal.
    fn close(self) {
        self.nft.close();
    }

    /// Removes the table.
    pub(crate) fn delete(&mut self) -> Result<()> {
        self.nft.delete(self.table.family, &self.table.name).map(drop)
    }
}

/// The elements of `addresses`, by the name of their set.
fn by_family(owner: &str, addresses: &[IpAddr]) -> BTreeMap<&'static str, Vec<Element>> {
    let mut sets = BTreeMap::<_, Vec<Element>>::new();
    for address in addresses {
        sets.entry(pods_of(*address)).or_default().push(Element::from(*address).commented(owner));
    }
    sets
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
