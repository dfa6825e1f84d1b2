//! Chains in tables of others, such as those that iptables keeps in nftables. They are read no further than is needed to take
//! one out.

use super::encode::{GET_CHAIN, GET_RULE, NEW_CHAIN, NEW_RULE, delete_chain, delete_rule, empty_chain};
use super::observe::read;
use super::{Family, Nft, Table};
use crate::Result;
use crate::netlink::attribute::{Attributes, attributes, find, number, text};
use crate::netlink::socket::NLM_F_DUMP;
use nix::errno::Errno;

/// NFT_JUMP and NFT_GOTO (linux/netfilter/nf_tables.h).
const WAYS: [i32; 2] = [-3, -4];
/// NF_DROP, as a chain's policy.
const DROP: u32 = 0;
/// How often others may change the table between a look at it and the transaction.
const ATTEMPTS: usize = 8;

impl Nft {
    /// Takes the chain called `chain` out of somebody else's table, with its rules and with every rule of that table that
    /// leads to it, in one transaction. All else in the table stays. Says whether there was such a chain.
    ///
    /// Fails with EBUSY if it is used by what is no plain rule, such as a map of verdicts.
    pub fn delete_foreign_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool> {
        let table = Table { family, name: table.into(), ..Table::default() };
        for attempt in 1.. {
            if !self.has_chain(family, &table.name, chain)? {
                return Ok(false);
            }
            let mut steps = Vec::new();
            for (of, handle) in self.rules_to(&table, chain)? {
                steps.push(delete_rule(&table, &of, handle));
            }
            steps.extend([empty_chain(&table, chain), delete_chain(&table, chain)]);
            match self.commit(steps) {
                // A rule or the chain has gone since, or another one leads to it now.
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EBUSY) && attempt < ATTEMPTS => {}
                done => return done.map(|()| true),
            }
        }
        Ok(false)
    }

    /// Whether somebody's base chain `base` drops or refuses packets behind the rule that leads to `chain`: by its policy, or by
    /// a rule of its own.
    pub fn drops_after(&mut self, family: Family, table: &str, base: &str, chain: &str) -> Result<bool> {
        if self.read_chain(family, table, base, |found, payload| *found = number(payload, 5) == Some(DROP))? {
            return Ok(true);
        }
        let table = Table { family, name: table.into(), ..Table::default() };
        let content = Attributes::after(&super::encode::header(family)).text(1, &table.name).text(2, base);
        // In the chain's order.
        let mut passed = false;
        read(&mut self.socket, &table, (GET_RULE, NEW_RULE), NLM_F_DUMP, content, |found, payload| {
            if text(payload, 1).is_some_and(|name| name == table.name)
                && text(payload, 2).is_some_and(|name| name == base)
            {
                *found |= passed && drops(payload);
                passed |= leads_to(payload).any(|to| to == chain);
            }
        })
    }

    /// Whether somebody's table has a chain called `chain`.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool> {
        self.read_chain(family, table, chain, |found, _| *found = true)
    }

    fn read_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        each: impl FnMut(&mut bool, &[u8]),
    ) -> Result<bool> {
        let table = Table { family, name: table.into(), ..Table::default() };
        let content = Attributes::after(&super::encode::header(family)).text(1, &table.name).text(3, chain);
        read(&mut self.socket, &table, (GET_CHAIN, NEW_CHAIN), 0, content, each)
    }

    /// Chain and handle of each rule that leads to `chain`.
    fn rules_to(&mut self, table: &Table, chain: &str) -> Result<Vec<(String, u64)>> {
        let content = Attributes::after(&super::encode::header(table.family)).text(1, &table.name);
        read(&mut self.socket, table, (GET_RULE, NEW_RULE), NLM_F_DUMP, content, |found: &mut Vec<_>, payload| {
            // Old kernels ignore the name and answer with the rules of all tables.
            if text(payload, 1).is_some_and(|name| name == table.name) && leads_to(payload).any(|to| to == chain) {
                let handle =
                    find(payload, 3).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_be_bytes(*bytes));
                found.extend(text(payload, 2).zip(handle));
            }
        })
    }
}

/// The chains that a rule jumps or goes to: expressions "immediate" that put a verdict into the register of verdicts.
fn leads_to(rule: &[u8]) -> impl Iterator<Item = String> {
    let expressions = attributes(find(rule, 4).unwrap_or_default());
    expressions.filter_map(|(_, expression)| {
        let data = find(expression, 2).filter(|_| text(expression, 1).is_some_and(|name| name == "immediate"))?;
        let verdict = find(find(data, 2)?, 2)?;
        let code = i32::from_be_bytes(number(verdict, 1)?.to_be_bytes());
        text(verdict, 2).filter(|_| WAYS.contains(&code))
    })
}

/// Whether a rule drops or refuses the packets that it matches.
fn drops(rule: &[u8]) -> bool {
    attributes(find(rule, 4).unwrap_or_default()).any(|(_, expression)| {
        let content = find(expression, 2).unwrap_or_default();
        match text(expression, 1).as_deref() {
            Some("reject") => true,
            Some("target") => text(content, 1).is_some_and(|name| name == "REJECT"),
            Some("immediate") => {
                find(content, 2).and_then(|data| find(data, 2)).is_some_and(|verdict| number(verdict, 1) == Some(DROP))
            }
            _ => false,
        }
    })
}

/// For tests only: no answer of the kernel may make a decoder panic.
#[cfg(fuzzing)]
pub(crate) fn decode_as_everything(payload: &[u8]) {
    let _ = (leads_to(payload).count(), drops(payload));
}
