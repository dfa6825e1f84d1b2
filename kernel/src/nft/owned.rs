//! Tables that many processes share, each with elements of its own: nobody replaces such a table as a whole, and the
//! comment of an element says whose it is.

use super::{Element, Nft, Table, element, encode, observe};
use crate::Result;
use crate::netlink::socket::NLM_F_EXCL;
use nix::errno::Errno;

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

    /// Adds elements to the set or map `set` of `table` (which describes the set), in place of those with the same keys: their
    /// data and comments become the new ones. All are put or none.
    ///
    /// Fails with ENOENT if the kernel has no such table or set.
    pub fn put_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> Result<()> {
        // Where nothing is replaced, nothing is removed, and closing the connection need not wait for it.
        match self.commit(encode::add_new_elements(table, set, elements)?) {
            Err(error) if error.errno == Errno::EEXIST => self.commit(encode::put_elements(table, set, elements)?),
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
}
