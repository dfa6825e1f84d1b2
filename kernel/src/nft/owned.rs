//! Tables that many processes share, each with elements of its own: nobody replaces such a table as a whole, and the
//! comment of an element says whose it is.

use super::{Element, Nft, Table, element, encode, observe};
use crate::netlink::socket::NLM_F_EXCL;
use crate::{Error, Result};
use nix::errno::Errno;
use std::ops::Bound::{Excluded, Unbounded};

/// How what the kernel's set holds compares with what its description does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// these prefixes and no others
    Exactly,
    /// these prefixes as they are written, and others
    More,
    /// some are missing, or part of a wider one
    Otherwise,
}

impl Nft {
    /// Makes the table if there is none of its name, and says whether it did. One that is there is left as it is, whatever it
    /// holds: of several processes that need it at the same time, one makes it.
    pub fn create(&mut self, table: &Table) -> Result<bool> {
        match self.commit(encode::creation(table, NLM_F_EXCL)?) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::EEXIST => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds elements to sets and maps of `table` (which describes them): those that are `owned` in place of those with the
    /// same keys, so that their data and comments become the new ones, and those that are `common` where they are missing.
    /// All of them in one transaction or none.
    ///
    /// Fails with ENOENT if the kernel has no such table or set.
    pub fn put_elements(
        &mut self,
        table: &Table,
        owned: &[(&str, &[Element])],
        common: &[(&str, &[Element])],
    ) -> Result<()> {
        type Encode = fn(&Table, &str, &[Element]) -> Result<Vec<encode::Step>>;
        let steps = |encode: Encode| -> Result<Vec<encode::Step>> {
            let mut steps = Vec::new();
            for (set, elements) in owned {
                steps.extend(encode(table, set, elements)?);
            }
            for (set, elements) in common {
                steps.extend(encode::add_elements(table, set, elements)?);
            }
            Ok(steps)
        };
        // Where nothing is replaced, nothing is removed, and closing the connection need not wait for it.
        match self.commit(steps(encode::add_new_elements)?) {
            Err(error) if error.errno == Errno::EEXIST => self.commit(steps(encode::put_elements)?),
            other => other,
        }
    }

    /// Closes the connection without waiting for the memory of what was removed: that is left to a process of its own.
    /// Not for processes that wait for children they do not know.
    pub fn close(self) {
        crate::detached::close(&self.socket);
    }

    /// The elements of the set or map `set` of `table`, which describes the set; for sets without intervals. No such table is
    /// no elements.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Element>> {
        let description = encode::find_set(table, set)?;
        let found = observe::elements(&mut self.socket, table, set)?;
        Ok(found.iter().filter_map(|encoded| element::decode(description, encoded)).collect())
    }

    /// The element of the set or map `set` of `table` that has the key of `wanted`, however many others there are.
    pub fn element(&mut self, table: &Table, set: &str, wanted: &Element) -> Result<Option<Element>> {
        let description = encode::find_set(table, set)?;
        let found = observe::element(&mut self.socket, table, set, wanted)?;
        Ok(found.and_then(|encoded| element::decode(description, &encoded)))
    }

    /// How the kernel's interval set `set` compares with the prefixes that `table` has in it. No such table is no prefixes.
    pub fn compare_prefixes(&mut self, table: &Table, set: &str) -> Result<Extent> {
        let description = encode::find_set(table, set)?;
        let wanted = element::encode(description, &description.elements)
            .map_err(|reason| Error::new(format!("reading set {set}"), Errno::EINVAL).because(reason))?;
        let found = observe::elements(&mut self.socket, table, set)?;
        if found == wanted {
            return Ok(Extent::Exactly);
        }
        // A prefix is there if its end comes next after its start.
        let is_there = |start: &element::Encoded| {
            let behind = (Excluded(start), Unbounded);
            found.contains(start) && found.range(behind).next() == wanted.range(behind).next()
        };
        let all = wanted.iter().filter(|bound| bound.start).all(is_there);
        Ok(if all { Extent::More } else { Extent::Otherwise })
    }

    /// Makes the prefixes that `table` has in its interval set `set` the only ones of the kernel's, in one transaction.
    ///
    /// Fails with ENOENT if the kernel has no such table or set.
    pub fn replace_prefixes(&mut self, table: &Table, set: &str) -> Result<()> {
        self.commit(encode::set_replacement(table, set)?)
    }
}
