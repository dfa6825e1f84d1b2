//! What attachments have in nftables, beside their records: put, withdrawn, collected and restored.

use super::{Attached, Attachments, Part};
use crate::plugin::kernel_error;
use crate::restore::Recorded;
use crate::shared_table::{self, ATTEMPTS, Shared, unless_there_is_no_nftables};
use crate::teardown::Failures;
use crate::{guard, masquerade};
use cni_spec::{AttachmentId, CniError};
use kernel::nft::{Extent, Nft, Table};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

impl Attachments {
    /// Records an attachment and programs what it has in nftables. Where the tables were missing, those of all attachments
    /// come back.
    ///
    /// # Errors
    /// `Kernel`; `Io` if there is something to restore one day: pods that have nothing in nftables do without a record.
    pub(crate) fn publish(&self, part: Part, record: &Attached) -> Result<(), CniError> {
        let tables = record.tables();
        match self.put(part, record) {
            Err(error) if tables.is_empty() => eprintln!("the attachment is not recorded: {}", error.msg),
            outcome => outcome?,
        }
        if tables.is_empty() {
            return Ok(());
        }
        let mut made = false;
        let mut shared = Shared::open().map_err(kernel_error)?;
        for table in &tables {
            made |= shared.put(table).map_err(kernel_error)?;
            // Others may have more networks of their own than this one.
            if shared.compare_prefixes(table).map_err(kernel_error)? == Extent::Otherwise {
                self.align_prefixes(&mut shared, &table.name)?;
            }
        }
        if made {
            self.restore_all(&mut Nft::open().map_err(kernel_error)?)?;
        }
        Ok(())
    }

    /// Undoes [`Attachments::publish`]; without a record by a search in `searched`.
    pub(crate) fn withdraw(
        &self,
        part: Part,
        network: &str,
        id: &AttachmentId,
        searched: &[Table],
    ) -> Result<(), CniError> {
        let tables = self.retire(part, network, id)?.map(|record| record.tables());
        if tables.as_ref().map_or(!searched.is_empty(), |tables| !tables.is_empty()) {
            let own = shared_table::owner(network, id);
            let removed = unless_there_is_no_nftables(Shared::open().and_then(|mut shared| {
                match &tables {
                    Some(tables) => tables.iter().try_for_each(|table| shared.remove(table))?,
                    None => {
                        searched.iter().try_for_each(|table| shared.retain(table, |found| found != own).map(drop))?
                    }
                }
                shared.close();
                Ok(())
            }));
            removed.map_err(kernel_error)?;
        }
        self.forget(part, network, id)
    }

    /// Undoes the [`Attachments::publish`] of all attachments of `network` but the `valid` ones; the masquerade's table goes
    /// with the last of them.
    pub(crate) fn collect(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        let mut failures = Failures::default();
        failures.note_cni(self.forget_others(network, valid));
        let owners: BTreeSet<String> = valid.iter().map(|id| shared_table::owner(network, id)).collect();
        let masquerade = masquerade::table(network);
        failures.note(unless_there_is_no_nftables(Shared::open().and_then(|mut shared| {
            if owners.is_empty() {
                shared.delete(&masquerade)?;
            } else {
                shared.retain(&masquerade, |found| owners.contains(found))?;
            }
            shared
                .retain(&guard::table(), |found| !shared_table::is_of(network, found) || owners.contains(found))
                .map(drop)
        })));
        if !owners.is_empty() {
            failures.note_cni(self.align_recorded(&masquerade.name));
        }
        self.forget_dead_namespaces();
        failures.into_result()
    }

    fn align_recorded(&self, table: &str) -> Result<(), CniError> {
        // Without a record there is no need for a connection either, nor for nftables.
        match self.recorded_table(table)? {
            Some(_) => self.align_prefixes(&mut Shared::open().map_err(kernel_error)?, table).map(drop),
            None => Ok(()),
        }
    }

    /// What differs from `record` in nftables, in words for CHECK.
    ///
    /// # Errors
    /// `Io`, `Kernel` if it cannot be told.
    pub(crate) fn differences(&self, record: &Attached) -> Result<Vec<String>, CniError> {
        let (tables, mut differences) = (record.tables(), Vec::new());
        if tables.is_empty() {
            return Ok(differences);
        }
        let mut shared = Shared::open().map_err(kernel_error)?;
        for table in tables {
            differences.extend(shared.differences(&table).map_err(kernel_error)?);
            if !table.sets.values().any(|set| set.interval) {
                continue;
            }
            let mut whole = self.recorded_table(&table.name)?.unwrap_or_else(|| table.clone());
            table.sets.into_iter().for_each(|(name, set)| shared_table::insert(&mut whole, &name, set.elements));
            if shared.compare_prefixes(&whole).map_err(kernel_error)? != Extent::Exactly {
                let networks = whole.sets.values().filter(|set| set.interval).flat_map(|set| &set.elements);
                let networks: Vec<String> = networks.map(ToString::to_string).collect();
                let (name, networks) = (&whole.name, networks.join(", "));
                differences
                    .push(format!("nft table inet {name} takes others than {networks} for the pods' own networks"));
            }
        }
        Ok(differences)
    }

    /// Makes the prefixes in a table those of all attachments on record, and tells whether they differed.
    fn align_prefixes(&self, shared: &mut Shared, table: &str) -> Result<bool, CniError> {
        let mut differed = false;
        // Records that come in between are read the next time: the last one who wrote sees that all is well.
        for _attempt in 0..ATTEMPTS {
            let Some(whole) = self.recorded_table(table)? else { break };
            if shared.compare_prefixes(&whole).map_err(kernel_error)? == Extent::Exactly {
                break;
            }
            match shared.replace_prefixes(&whole) {
                // With the table, which somebody removed, others come back as well.
                Err(error) if error.errno == Errno::ENOENT => break,
                replaced => replaced.map_err(kernel_error)?,
            }
            differed = true;
        }
        Ok(differed)
    }

    /// A table with what all attachments on record have in it.
    fn recorded_table(&self, name: &str) -> Result<Option<Table>, CniError> {
        let tables = merged(self.all()?.iter().map(|(_, record)| record));
        Ok(tables.into_iter().find(|table| table.name == name))
    }

    /// Puts back what is missing of all attachments, and tells whether anything was.
    fn restore_all(&self, nft: &mut Nft) -> Result<(bool, Vec<Table>), CniError> {
        let records = self.all()?;
        let tables = merged(records.iter().map(|(_, record)| record));
        let mut repaired = false;
        for table in &tables {
            repaired |= Shared::restore(nft, table).map_err(kernel_error)?;
        }
        let mut shared = Shared::open().map_err(kernel_error)?;
        for table in &tables {
            if shared.compare_prefixes(table).map_err(kernel_error)? != Extent::Exactly {
                repaired |= self.align_prefixes(&mut shared, &table.name)?;
            }
        }
        if repaired {
            // Whoever was detached in the meantime has looked for its elements already.
            let gone: Vec<&Attached> =
                records.iter().filter(|(path, _)| !path.exists()).map(|(_, record)| record).collect();
            for table in gone.into_iter().flat_map(Attached::tables) {
                shared.remove(&table).map_err(kernel_error)?;
            }
        }
        Ok((repaired, tables))
    }
}

/// Each table once, with the elements of all.
fn merged<'a>(records: impl Iterator<Item = &'a Attached>) -> Vec<Table> {
    let mut tables = BTreeMap::<String, Table>::new();
    for table in records.flat_map(Attached::tables) {
        match tables.get_mut(&table.name) {
            Some(whole) => {
                table.sets.into_iter().for_each(|(name, set)| shared_table::insert(whole, &name, set.elements))
            }
            None => drop(tables.insert(table.name.clone(), table)),
        }
    }
    tables.into_values().collect()
}

/// Attachments as the daemon watches over them.
#[derive(Debug)]
pub struct Held {
    attachments: Attachments,
    /// the tables of the last full comparison
    tables: Vec<Table>,
}

impl Held {
    /// What these attachments have in nftables.
    pub fn by(attachments: Attachments) -> Self {
        Held { attachments, tables: Vec::new() }
    }
}

impl Recorded for Held {
    fn changed(&self) -> Result<BTreeMap<String, SystemTime>, CniError> {
        self.attachments.changed()
    }

    fn stands(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        for table in &self.tables {
            if !nft.has_frame(table).map_err(kernel_error)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn restore(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        let (repaired, tables) = self.attachments.restore_all(nft)?;
        self.tables = tables;
        Ok(repaired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(container: &str, network: &str) -> Attached {
        Attached {
            network: network.into(),
            container: container.into(),
            interface: "eth0".into(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            masquerade: Some(vec!["10.0.0.0/24".parse().unwrap()]),
            hardware_address: Some("02:00:00:00:00:01".into()),
            accepted: true,
            isolated_bridge: Some("cni0".into()),
            ..Attached::default()
        }
    }

    #[test]
    fn what_many_attachments_have_is_each_table_once() {
        let records = [attached("a", "one"), attached("b", "one"), attached("c", "two")];
        let tables = merged(records.iter());
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["cni-firewall", "cni-macspoof", "cni-masquerade-one", "cni-masquerade-two"]);
        let count = |table: usize, set: &str| tables[table].sets[set].elements.len();
        assert_eq!((count(0, "pods4"), count(1, "guarded"), count(2, "pods6"), count(3, "pods6")), (3, 3, 2, 1));
        assert_eq!((count(0, "same-bridge"), count(2, "own4")), (1, 1));
    }

    #[test]
    fn a_record_of_a_later_or_an_earlier_version_can_be_read() {
        let text =
            r#"{"network": "n", "container": "c", "interface": "eth0", "sandbox": "/x", "addresses": [], "new": 1}"#;
        let record: Attached = serde_json::from_str(text).unwrap();
        assert_eq!((record.owner().as_str(), record.tables().len()), ("n/c/eth0", 0));
        let whole = attached("a", "one");
        assert_eq!(serde_json::from_slice::<Attached>(&serde_json::to_vec(&whole).unwrap()).unwrap(), whole);
    }
}
