//! nftables through netlink: a table is a value, replaced atomically; no `nft` executable is involved.
//!
//! One table holds one concern. Its chains and rules are static, what changes often are elements of its sets and maps.
//! Whether the kernel still holds what we programmed is asked with [`Nft::is_intact`], so that a pass over an unchanged
//! node writes nothing.

mod element;
mod encode;
mod expression;
mod foreign;
mod machine;
mod members;
mod observe;
mod owned;
mod passage;
mod set;
mod shape;
mod table;
mod text;

pub use machine::Packet;
pub use owned::Extent;
pub use passage::{Dropper, ForwardChain, Obstacle};
pub use set::{Element, Field, Set, Value};
pub use table::{
    Action, Chain, ConntrackState, Family, Hook, HookKind, HookPoint, Interface, Match, Policy, Protocol, Rule, Table,
};

use crate::netlink::socket::Socket;
use crate::netns::Netns;
use crate::{Error, Result};
use encode::Step;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use shape::{Detail, Shape};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

/// A connection to the nftables of one network namespace.
///
/// Keep it open as long as there is work: the kernel makes the closing of any nfnetlink socket wait for the memory of
/// deleted objects (an RCU grace period, 6 to 14 ms).
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl AsFd for Nft {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Nft {
    /// Connects to the nftables of the namespace that the calling thread is in.
    pub fn open() -> Result<Self> {
        match Socket::open(SockProtocol::NetlinkNetFilter) {
            Ok(socket) => Ok(Nft { socket }),
            Err(errno) => {
                let error = Error::new("opening an nftables socket", errno);
                Err(match errno {
                    Errno::EPROTONOSUPPORT => error.because("the kernel lacks nfnetlink: load the module nf_tables"),
                    _ => error,
                })
            }
        }
    }

    /// Connects to the nftables of `namespace`.
    pub fn open_in(namespace: &Netns) -> Result<Self> {
        let _inside = namespace.enter()?;
        Nft::open()
    }

    /// Makes the kernel's table equal to `table` in one transaction: no packet meets a missing or half-built table.
    /// Counters and elements that were not part of `table` are gone afterwards.
    ///
    /// Fails with EINVAL if the value contradicts itself (a rule names a set that the table lacks, an IPv6 prefix in an
    /// `ip` table), before anything is sent.
    pub fn replace(&mut self, table: &Table) -> Result<()> {
        let steps = encode::replacement(table)?;
        self.commit(steps)
    }

    /// Brings the kernel's table to `table` if it differs, and says whether it did.
    pub fn ensure(&mut self, table: &Table) -> Result<bool> {
        if self.is_intact(table)? {
            return Ok(false);
        }
        self.replace(table)?;
        Ok(true)
    }

    /// Whether the kernel holds exactly the chains, rules, sets and elements that [`Nft::replace`] would program. Reads only.
    pub fn is_intact(&mut self, table: &Table) -> Result<bool> {
        self.equals(table, Detail::Elements)
    }

    /// Whether the kernel holds exactly the chains, rules and sets of `table`, whatever the elements: a look that costs the
    /// same however many there are. Reads only.
    pub fn has_frame(&mut self, table: &Table) -> Result<bool> {
        self.equals(table, Detail::Frame)
    }

    fn equals(&mut self, table: &Table, detail: Detail) -> Result<bool> {
        let wanted = Shape::of(table, detail)?;
        Ok(observe::observe(&mut self.socket, table, detail)?.is_some_and(|found| found == wanted))
    }

    /// Whether the kernel's set or map `set`, one without intervals, has this very element. Reads only; it costs the same
    /// however many there are.
    pub fn has_element(&mut self, table: &Table, set: &str, element: &Element) -> Result<bool> {
        let found = observe::element(&mut self.socket, table, set, element)?;
        let description = table.sets.get(set).cloned().unwrap_or_default();
        let wanted = element::encode(&description, [element]).unwrap_or_default();
        Ok(found.is_some_and(|found| wanted == BTreeSet::from([found])))
    }

    /// A number that changes with every transaction of anybody in the namespace: while it stays the same, so does whatever
    /// was found intact.
    pub fn generation(&mut self) -> Result<u32> {
        observe::generation(&mut self.socket)
    }

    /// Whether there is a table of this name, whatever is in it. Reads only.
    pub fn has_table(&mut self, family: Family, name: &str) -> Result<bool> {
        observe::has_table(&mut self.socket, &Table { family, name: name.into(), ..Table::default() })
    }

    /// The names of all tables of a family, whoever made them. Reads only.
    pub fn table_names(&mut self, family: Family) -> Result<Vec<String>> {
        observe::table_names(&mut self.socket, family)
    }

    /// Removes a table with everything in it, and says whether it was there.
    pub fn delete(&mut self, family: Family, name: &str) -> Result<bool> {
        match self.commit(vec![encode::delete_table(family, name)]) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds elements to the set or map `set` of `table`, which describes the set; elements that are there already are fine.
    /// All are added or none.
    ///
    /// Fails with EBUSY or EEXIST if a map has one of the keys with other data, with ENOTEMPTY if a prefix overlaps one in
    /// the set, and with ENOENT if the kernel has no such table or set.
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> Result<()> {
        self.add_to_sets(table, &[(set, elements)])
    }

    /// [`Nft::add_elements`] to several sets in one transaction.
    pub fn add_to_sets(&mut self, table: &Table, additions: &[(&str, &[Element])]) -> Result<()> {
        let mut steps = Vec::new();
        for (set, elements) in additions {
            steps.extend(encode::add_elements(table, set, elements)?);
        }
        self.commit(steps)
    }

    /// Removes elements from the set or map `set` of `table`; what is gone already (the table, too) is fine.
    pub fn remove_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> Result<()> {
        let steps = encode::remove_elements(table, set, elements)?;
        match self.commit(steps) {
            Err(error) if error.errno == Errno::ENOENT && elements.len() > 1 => {}
            Err(error) if error.errno == Errno::ENOENT => return Ok(()),
            other => return other,
        }
        // One that was missing undid the removal of all others: each gets a transaction of its own.
        for element in elements {
            self.remove_elements(table, set, std::slice::from_ref(element))?;
        }
        Ok(())
    }

    fn commit(&mut self, steps: Vec<Step>) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let (messages, subjects) = encode::transaction(steps);
        self.socket.transaction(&messages).map_err(|(index, refusal)| {
            let subject = subjects.get(index).cloned().unwrap_or_default();
            let reason = match refusal.errno {
                _ if !refusal.reason.is_empty() => refusal.reason,
                // The kernel answers so when it has no such kind of expression, chain or subsystem.
                Errno::ENOENT | Errno::EOPNOTSUPP => "something it names is missing, or the kernel lacks a feature: \
                    load nf_tables, nft_chain_nat, nft_masq, nft_ct, nft_fib_ipv4 and nft_fib_ipv6"
                    .into(),
                Errno::EMSGSIZE => "the transaction is larger than the socket's buffer: raise net.core.wmem_max".into(),
                _ => String::new(),
            };
            Error::new(subject, refusal.errno).because(reason)
        })
    }
}

#[cfg(fuzzing)]
pub(crate) fn decode_as_everything(payload: &[u8]) {
    observe::decode_as_everything(payload);
    foreign::decode_as_everything(payload);
}

#[cfg(fuzzing)]
pub(crate) fn pass(table: &[u8]) {
    passage::pass(table);
}

#[cfg(fuzzing)]
pub(crate) fn encode_all(table: &Table) -> Result<()> {
    for set in table.sets.values().filter(|set| set.interval) {
        let encoded = element::encode(set, &set.elements).map_err(|reason| Error::new(reason, Errno::EINVAL))?;
        let starts: Vec<bool> = encoded.iter().map(|element| element.start).collect();
        assert!(starts.iter().enumerate().all(|(place, starts)| *starts == (place % 2 == 0)), "{:?}", set.elements);
    }
    encode::replacement(table).map(drop)
}
