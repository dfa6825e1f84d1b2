//! The kernel's own account of a table.

use super::element::Encoded;
use super::encode::{ELEMENT_END, GET_CHAIN, GET_ELEMENT, GET_GENERATION, GET_RULE, GET_SET, GET_TABLE};
use super::encode::{NEW_CHAIN, NEW_ELEMENT, NEW_GENERATION, NEW_RULE, NEW_SET, NEW_TABLE, describe, header, kind};
use super::shape::{ChainShape, Detail, SetShape, Shape};
use super::{Element, Family, Table};
use crate::netlink::attribute::{Attributes, attributes, find, number, text};
use crate::netlink::socket::{Message, NLM_F_DUMP, Socket};
use crate::{Error, Result};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// How often a reading into which somebody's transaction fell is repeated. After that a mixture counts, which can only look
/// broken where it is not.
const ATTEMPTS: usize = 16;

/// What the kernel has under the name of `table`, or none.
pub(super) fn observe(socket: &mut Socket, table: &Table, detail: Detail) -> Result<Option<Shape>> {
    let mut generation = self::generation(socket)?;
    let mut found = None;
    for _attempt in 0..ATTEMPTS {
        found = observe_once(socket, table, detail)?;
        let now = self::generation(socket)?;
        if now == generation {
            break;
        }
        generation = now;
    }
    Ok(found)
}

/// The number that the kernel counts up with each transaction of anybody in the namespace.
pub(super) fn generation(socket: &mut Socket) -> Result<u32> {
    let content = Attributes::after(&header(Family::Ip));
    let message = Message { kind: kind(GET_GENERATION), flags: 0, payload: content.finish() };
    let answer = |found: &mut u32, kind_found, payload: &[u8]| {
        if kind_found == kind(NEW_GENERATION) {
            *found = payload.get(4..).and_then(|payload| number(payload, 1)).unwrap_or(0);
        }
    };
    socket
        .query(message, answer)
        .map_err(|refusal| Error::new("reading the generation of nftables", refusal.errno).because(refusal.reason))
}

/// What the kernel has under the key of `element` in `set`, or none; none too if there is no such set or table.
pub(super) fn element(socket: &mut Socket, table: &Table, set: &str, element: &Element) -> Result<Option<Encoded>> {
    let content = super::encode::element_key(table, set, element)?;
    read(socket, table, (GET_ELEMENT, NEW_ELEMENT), 0, content, |found, payload| {
        let list = find(payload, 3).unwrap_or_default();
        *found = attributes(list).map(|(_, element)| element_found(element)).next();
    })
}

/// Whether the kernel has a table of the name of `table`.
pub(super) fn has_table(socket: &mut Socket, table: &Table) -> Result<bool> {
    let content = Attributes::after(&header(table.family)).text(1, &table.name);
    read(socket, table, (GET_TABLE, NEW_TABLE), 0, content, |found, _| *found = true)
}

/// The names of all tables of a family.
pub(super) fn table_names(socket: &mut Socket, family: Family) -> Result<Vec<String>> {
    let any = Table { family, ..Table::default() };
    let content = Attributes::after(&header(family));
    read(socket, &any, (GET_TABLE, NEW_TABLE), NLM_F_DUMP, content, |found: &mut Vec<_>, payload| {
        found.extend(text(payload, 1));
    })
}

fn observe_once(socket: &mut Socket, table: &Table, detail: Detail) -> Result<Option<Shape>> {
    let content = Attributes::after(&header(table.family)).text(1, &table.name);
    let Some((flags, objects)) = read(socket, table, (GET_TABLE, NEW_TABLE), 0, content, |found, payload| {
        *found = Some((number(payload, 2).unwrap_or(0), number(payload, 3)));
    })?
    else {
        return Ok(None);
    };
    let expected = u32::try_from(table.chains.len() + table.sets.len()).ok();
    let chains = if objects == expected { own_chains(socket, table)? } else { all_chains(socket, table)? };
    let mut shape = Shape { flags, chains, sets: sets(socket, table)? };
    for (chain, rules) in rules(socket, table)? {
        shape.chains.entry(chain).or_default().rules = rules;
    }
    for name in table.sets.keys().filter(|_| detail == Detail::Elements) {
        if let Some(set) = shape.sets.get_mut(name) {
            set.elements = elements(socket, table, name)?;
        }
    }
    Ok(Some(shape))
}

/// The chains that `table` has. If the number of objects is right there are no others, and it costs nothing how many chains
/// the tables of others have.
fn own_chains(socket: &mut Socket, table: &Table) -> Result<BTreeMap<String, ChainShape>> {
    let mut chains = BTreeMap::new();
    for chain in &table.chains {
        let content = Attributes::after(&header(table.family)).text(1, &table.name).text(3, &chain.name);
        let found: Option<ChainShape> = read(socket, table, (GET_CHAIN, NEW_CHAIN), 0, content, |found, payload| {
            *found = Some(chain_found(payload));
        })?;
        chains.extend(found.map(|found| (chain.name.clone(), found)));
    }
    Ok(chains)
}

/// All chains of the table, picked from those of the family. A wrong number of objects alone proves nothing: the kernel counts
/// what transactions of others are about to do, or will not do after all.
fn all_chains(socket: &mut Socket, table: &Table) -> Result<BTreeMap<String, ChainShape>> {
    let content = Attributes::after(&header(table.family));
    read(socket, table, (GET_CHAIN, NEW_CHAIN), NLM_F_DUMP, content, |found, payload| {
        if text(payload, 1).is_some_and(|name| name == table.name) {
            BTreeMap::insert(found, text(payload, 3).unwrap_or_default(), chain_found(payload));
        }
    })
}

fn rules(socket: &mut Socket, table: &Table) -> Result<BTreeMap<String, Vec<Option<String>>>> {
    let content = Attributes::after(&header(table.family)).text(1, &table.name);
    read(socket, table, (GET_RULE, NEW_RULE), NLM_F_DUMP, content, |found, payload| {
        // Old kernels ignore the name and answer with the rules of all tables.
        if text(payload, 1).is_some_and(|name| name == table.name) {
            let rules: &mut Vec<_> = BTreeMap::entry(found, text(payload, 2).unwrap_or_default()).or_default();
            rules.push(find(payload, 7).and_then(note));
        }
    })
}

fn sets(socket: &mut Socket, table: &Table) -> Result<BTreeMap<String, SetShape>> {
    let content = Attributes::after(&header(table.family)).text(1, &table.name);
    read(socket, table, (GET_SET, NEW_SET), NLM_F_DUMP, content, |found, payload| {
        if text(payload, 1).is_some_and(|name| name == table.name) {
            let of = |kind| number(payload, kind).unwrap_or(0);
            let set = SetShape { flags: of(3), key: (of(4), of(5)), data: (of(6), of(7)), ..SetShape::default() };
            BTreeMap::insert(found, text(payload, 2).unwrap_or_default(), set);
        }
    })
}

/// The elements of a set; none if there is no such set or table.
pub(super) fn elements(socket: &mut Socket, table: &Table, set: &str) -> Result<BTreeSet<Encoded>> {
    let content = Attributes::after(&header(table.family)).text(1, &table.name).text(2, set);
    read(socket, table, (GET_ELEMENT, NEW_ELEMENT), NLM_F_DUMP, content, |found, payload| {
        let list = find(payload, 3).unwrap_or_default();
        BTreeSet::extend(found, attributes(list).map(|(_, element)| element_found(element)));
    })
}

fn chain_found(payload: &[u8]) -> ChainShape {
    let hook = find(payload, 4).map(|hook| {
        let priority =
            find(hook, 2).and_then(|value| value.first_chunk()).map_or(0, |value| i32::from_be_bytes(*value));
        let policy = number(payload, 5).unwrap_or(u32::MAX);
        (text(payload, 7).unwrap_or_default(), number(hook, 1).unwrap_or(u32::MAX), priority, policy)
    });
    ChainShape { hook, rules: Vec::new() }
}

fn element_found(element: &[u8]) -> Encoded {
    let value = |kind| find(element, kind).and_then(|data| find(data, 1)).unwrap_or_default().to_vec();
    Encoded {
        key: value(1),
        start: number(element, 3).unwrap_or(0) & ELEMENT_END == 0,
        data: value(2),
        comment: find(element, 6).and_then(note).unwrap_or_default(),
    }
}

/// The comment in the user data of a rule or element (libnftnl's form: type 0, length, text with NUL).
fn note(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned());
        }
        rest = tail.get(usize::from(*length)..)?;
    }
    None
}

/// For tests only: no answer of the kernel may make a decoder panic.
#[cfg(fuzzing)]
pub(crate) fn decode_as_everything(payload: &[u8]) {
    let _ = chain_found(payload);
    let _ = element_found(payload);
    let _ = note(payload);
    let _ = (number(payload, 1), text(payload, 1), find(payload, 7).and_then(note));
    let list = find(payload, 3).unwrap_or_default();
    let _ = attributes(list).map(|(_, element)| element_found(element)).collect::<Vec<_>>();
}

/// One question to the kernel about a table of ours. An object that does not exist leaves the answer empty; a chain, a set or
/// the whole table can go while we read.
pub(super) fn read<T: Default>(
    socket: &mut Socket,
    table: &Table,
    kinds: (u16, u16),
    flags: u16,
    content: Attributes,
    each: impl FnMut(&mut T, &[u8]),
) -> Result<T> {
    ask(socket, || format!("reading {}", describe(table)), kinds, flags, content, each)
}

/// The same about any: the kinds of the question and of the answers, and what is done with each answer.
pub(super) fn ask<T: Default>(
    socket: &mut Socket,
    doing: impl FnOnce() -> String,
    (question, answer): (u16, u16),
    flags: u16,
    content: Attributes,
    mut each: impl FnMut(&mut T, &[u8]),
) -> Result<T> {
    let message = Message { kind: kind(question), flags, payload: content.finish() };
    let result = socket.query(message, |found, kind_found, payload| {
        // Behind the family header.
        if kind_found == kind(answer)
            && let Some(payload) = payload.get(4..)
        {
            each(found, payload);
        }
    });
    match result {
        Ok(found) => Ok(found),
        Err(refusal) if refusal.errno == Errno::ENOENT => Ok(T::default()),
        Err(refusal) => Err(Error::new(doing(), refusal.errno).because(refusal.reason)),
    }
}
