//! What of a table can be compared with the kernel's: everything but counters.

use super::element::{self, Encoded};
use super::encode::comment;
use super::{Set, Table};
use crate::{Error, Result};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// How much of a table is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// chains, rules and the types of sets: what costs the same however many elements there are
    Frame,
    /// the elements as well
    Elements,
}

/// A table, programmed or found, in one form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// NFTA_TABLE_FLAGS; a dormant table does nothing
    pub(super) flags: u32,
    /// chains by name
    pub(super) chains: BTreeMap<String, ChainShape>,
    /// sets and maps by name
    pub(super) sets: BTreeMap<String, SetShape>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ChainShape {
    /// type, hook number, priority and policy of a base chain
    pub(super) hook: Option<(String, u32, i32, u32)>,
    /// the comment of each rule, which carries a hash of its content; none for a rule that is not ours
    pub(super) rules: Vec<Option<String>>,
}

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SetShape {
    /// NFTA_SET_FLAGS
    pub(super) flags: u32,
    /// type number and length in bytes of the key
    pub(super) key: (u32, u32),
    /// type number and length in bytes of a map's data
    pub(super) data: (u32, u32),
    /// the elements
    pub(super) elements: BTreeSet<Encoded>,
}

impl Shape {
    /// The shape that `table` has once it is programmed.
    pub(super) fn of(table: &Table, detail: Detail) -> Result<Shape> {
        let mut shape = Shape::default();
        for chain in &table.chains {
            let hook = chain.hook.map(|hook| (hook.kind.word().into(), hook.number(), hook.priority, hook.policy()));
            let rules = chain.rules.iter().map(|rule| comment(table, chain, rule).map(Some)).collect::<Result<_>>()?;
            shape.chains.insert(chain.name.clone(), ChainShape { hook, rules });
        }
        for (name, set) in &table.sets {
            shape.sets.insert(name.clone(), set_shape(table, name, set, detail)?);
        }
        Ok(shape)
    }
}

fn set_shape(table: &Table, name: &str, set: &Set, detail: Detail) -> Result<SetShape> {
    let elements = set.elements.iter().filter(|_| detail == Detail::Elements);
    let elements = element::encode(set, elements).map_err(|reason| {
        let operation = format!("reading the elements of set {name} of {}", super::encode::describe(table));
        Error::new(operation, Errno::EINVAL).because(reason)
    })?;
    let kind = |fields| (element::datatype(fields), count(element::length(fields)));
    Ok(SetShape { flags: set.flags(), key: kind(&set.key), data: kind(&set.data), elements })
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
