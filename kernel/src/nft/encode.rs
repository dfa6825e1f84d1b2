//! A table as messages of one transaction.

use super::element::{self, Encoded};
use super::expression::expressions;
use super::{Chain, Element, Family, Field, Hook, HookKind, HookPoint, Policy, Rule, Set, Table};
use crate::netlink::attribute::Attributes;
use crate::netlink::socket::{Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
/// Message types (enum nf_tables_msg_types).
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
pub(super) const NEW_GENERATION: u16 = 15;
pub(super) const GET_GENERATION: u16 = 16;

pub(super) const SET_INTERVAL: u32 = 4;
pub(super) const SET_MAP: u32 = 8;
pub(super) const ELEMENT_END: u32 = 1;

/// NFTNL_UDATA_SET_KEYBYTEORDER, its length, and nft's BYTEORDER_HOST_ENDIAN (libnftnl/udata.h, nft's datatype.h).
const KEY_IN_HOST_ORDER: [u8; 6] = if cfg!(target_endian = "little") { [0, 4, 1, 0, 0, 0] } else { [0, 4, 0, 0, 0, 1] };

/// An attribute holds less than 64 KiB; a list of elements is cut into lists of about this many bytes.
const ELEMENTS_BYTES: usize = 32 << 10;
/// NFT_NAME_MAXLEN, with the NUL.
const NAME: usize = 256;
/// A comment and the hash behind it stay below the 128 bytes that nft allows.
const COMMENT: usize = 100;

/// One message of a transaction, and what it does, for errors.
#[derive(Debug)]
pub(super) struct Step {
    subject: String,
    message: Message,
}

/// Everything that makes the kernel's table equal to `table`, whatever was there.
pub(super) fn replacement(table: &Table) -> Result<Vec<Step>> {
    // A table can only be deleted if it exists: with the first step it does.
    let mut steps = vec![new_table(table, "preparing", 0), delete_table(table.family, &table.name)];
    steps.extend(creation(table, 0)?);
    Ok(steps)
}

/// Everything that makes a table where there is none; with NLM_F_EXCL it is refused where there is one.
pub(super) fn creation(table: &Table, flags: u16) -> Result<Vec<Step>> {
    named("table", &table.name)?;
    let mut steps = vec![new_table(table, "adding", flags)];
    for (index, (name, set)) in table.sets.iter().enumerate() {
        steps.push(set_step(table, name, set, index)?);
        steps.extend(element_steps(table, name, set, &set.elements, NEW_ELEMENT)?);
    }
    for chain in &table.chains {
        steps.push(chain_step(table, chain)?);
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            steps.push(rule_step(table, chain, rule)?);
        }
    }
    Ok(steps)
}

fn new_table(table: &Table, what: &str, flags: u16) -> Step {
    let content = Attributes::after(&header(table.family)).text(1, &table.name);
    step(format!("{what} {}", describe(table)), NEW_TABLE, NLM_F_CREATE | flags, content)
}

/// The removal of a table with everything in it.
pub(super) fn delete_table(family: Family, name: &str) -> Step {
    let content = Attributes::after(&header(family)).text(1, name);
    step(format!("deleting nft table {} {name}", family.word()), DELETE_TABLE, 0, content)
}

/// The removal of one rule.
pub(super) fn delete_rule(table: &Table, chain: &str, handle: u64) -> Step {
    let content = chain_of(table, 2, chain).bytes(3, &handle.to_be_bytes());
    step(format!("deleting a rule of chain {chain} of {}", describe(table)), DELETE_RULE, 0, content)
}

/// The removal of all rules of a chain.
pub(super) fn empty_chain(table: &Table, chain: &str) -> Step {
    step(format!("emptying chain {chain} of {}", describe(table)), DELETE_RULE, 0, chain_of(table, 2, chain))
}

/// The removal of a chain without rules.
pub(super) fn delete_chain(table: &Table, chain: &str) -> Step {
    step(format!("deleting chain {chain} of {}", describe(table)), DELETE_CHAIN, 0, chain_of(table, 3, chain))
}

/// What a chain, or a rule of it, is named by; the number of the attribute differs.
fn chain_of(table: &Table, attribute: u16, chain: &str) -> Attributes {
    Attributes::after(&header(table.family)).text(1, &table.name).text(attribute, chain)
}

/// The addition of elements to a set that exists.
pub(super) fn add_elements(table: &Table, set: &str, elements: &[Element]) -> Result<Vec<Step>> {
    element_steps(table, set, find_set(table, set)?, elements, NEW_ELEMENT)
}

/// The removal of elements from a set.
pub(super) fn remove_elements(table: &Table, set: &str, elements: &[Element]) -> Result<Vec<Step>> {
    element_steps(table, set, find_set(table, set)?, elements, DELETE_ELEMENT)
}

/// The removal of all elements of a set, and the addition of those that its description has.
pub(super) fn set_replacement(table: &Table, set: &str) -> Result<Vec<Step>> {
    let description = find_set(table, set)?;
    let content = Attributes::after(&header(table.family)).text(1, &table.name).text(2, set);
    let mut steps = vec![step(format!("emptying set {set} of {}", describe(table)), DELETE_ELEMENT, 0, content)];
    steps.extend(element_steps(table, set, description, &description.elements, NEW_ELEMENT)?);
    Ok(steps)
}

/// What a question for one element of a set without intervals consists of.
pub(super) fn element_key(table: &Table, set: &str, element: &Element) -> Result<Attributes> {
    let encoded = element::encode(find_set(table, set)?, [element]).map_err(|reason| {
        Error::new(format!("reading set {set} of {}", describe(table)), Errno::EINVAL).because(reason)
    })?;
    let keys = encoded.into_iter().fold(Attributes::new(), |list, element| {
        list.nested(1, element_attributes(&Encoded { data: Vec::new(), comment: String::new(), ..element }))
    });
    Ok(Attributes::after(&header(table.family)).text(1, &table.name).text(2, set).nested(3, keys))
}

/// The addition of elements to a set that has none of them, or else it is refused.
pub(super) fn add_new_elements(table: &Table, set: &str, elements: &[Element]) -> Result<Vec<Step>> {
    let mut steps = element_steps(table, set, find_set(table, set)?, elements, NEW_ELEMENT)?;
    steps.iter_mut().for_each(|step| step.message.flags |= NLM_F_EXCL);
    Ok(steps)
}

/// The addition of elements to a set in place of those with the same keys: the kernel leaves what is there as it is, so that
/// each goes first, and to be able to go it has to be there.
pub(super) fn put_elements(table: &Table, set: &str, elements: &[Element]) -> Result<Vec<Step>> {
    let description = find_set(table, set)?;
    let mut steps = element_steps(table, set, description, elements, NEW_ELEMENT)?;
    steps.extend(element_steps(table, set, description, elements, DELETE_ELEMENT)?);
    steps.extend(element_steps(table, set, description, elements, NEW_ELEMENT)?);
    Ok(steps)
}

/// The steps between the marks that make them one transaction, of which the last is acknowledged.
pub(super) fn transaction(steps: Vec<Step>) -> (Vec<Message>, Vec<String>) {
    let mark = |kind| {
        let payload = [&[0, 0][..], &SUBSYSTEM.to_be_bytes()].concat();
        Message { kind, flags: 0, payload }
    };
    let mut messages = vec![mark(BATCH_BEGIN)];
    // What concerns the transaction as a whole is reported on its first message: it gets the name of the last step's object.
    let mut subjects = vec![steps.last().map(|step| format!("committing: {}", step.subject)).unwrap_or_default()];
    let last = steps.len();
    for (number, mut step) in (1..).zip(steps) {
        if number == last {
            step.message.flags |= NLM_F_ACK;
        }
        messages.push(step.message);
        subjects.push(step.subject);
    }
    messages.push(mark(BATCH_END));
    (messages, subjects)
}

/// The comment of a rule as programmed: what people read, and a hash of what the kernel runs.
pub(super) fn comment(table: &Table, chain: &Chain, rule: &Rule) -> Result<String> {
    let expressions = expressions(table, rule).map_err(|reason| rule_error(table, chain, rule, reason))?;
    let digest = Sha256::digest(&expressions);
    let hash = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut text = String::new();
    for character in rule.comment.chars().filter(|character| !character.is_control() && *character != '"') {
        if text.len() + character.len_utf8() > COMMENT {
            break;
        }
        text.push(character);
    }
    Ok(if text.is_empty() { format!("#{hash}") } else { format!("{text} #{hash}") })
}

/// struct nfgenmsg.
pub(super) fn header(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}

/// The type number of a message.
pub(super) fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// "nft table ip flanneld-rs"
pub(super) fn describe(table: &Table) -> String {
    format!("nft table {} {}", table.family.word(), table.name)
}

impl Hook {
    /// NF_INET_* (linux/netfilter.h).
    pub(super) fn number(&self) -> u32 {
        match self.point {
            HookPoint::Prerouting => 0,
            HookPoint::Input => 1,
            HookPoint::Forward => 2,
            HookPoint::Output => 3,
            HookPoint::Postrouting => 4,
        }
    }

    /// NF_DROP or NF_ACCEPT.
    pub(super) fn policy(&self) -> u32 {
        match self.policy {
            Policy::Drop => 0,
            Policy::Accept => 1,
        }
    }
}

impl HookKind {
    /// The kernel's name of the chain type.
    pub(super) fn word(self) -> &'static str {
        match self {
            HookKind::Filter => "filter",
            HookKind::Nat => "nat",
            HookKind::Route => "route",
        }
    }
}

impl Set {
    /// NFTA_SET_FLAGS.
    pub(super) fn flags(&self) -> u32 {
        (if self.interval { SET_INTERVAL } else { 0 }) | (if self.data.is_empty() { 0 } else { SET_MAP })
    }
}

pub(super) fn find_set<'a>(table: &'a Table, name: &str) -> Result<&'a Set> {
    let missing = || Error::new(format!("finding set {name} in {}", describe(table)), Errno::EINVAL);
    table.sets.get(name).ok_or_else(|| missing().because("the table's description has no such set"))
}

fn set_step(table: &Table, name: &str, set: &Set, index: usize) -> Result<Step> {
    named("set", name)?;
    let subject = format!("adding set {name} to {}", describe(table));
    let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let mut content = Attributes::after(&header(table.family))
        .text(1, &table.name)
        .text(2, name)
        .number(3, set.flags())
        .number(4, element::datatype(&set.key))
        .number(5, size(element::length(&set.key)));
    if !set.data.is_empty() {
        content = content.number(6, element::datatype(&set.data)).number(7, size(element::length(&set.data)));
    }
    // The number is only for references inside the transaction; ours are by name, but the kernel insists on one.
    content = content.number(10, size(index + 1));
    if matches!(set.key[..], [Field::InputDevice | Field::OutputDevice]) {
        // For `nft list`, which takes the number for one in network byte order, and shows no name at all.
        content = content.bytes(13, &KEY_IN_HOST_ORDER);
    }
    Ok(step(subject, NEW_SET, NLM_F_CREATE, content))
}

fn element_steps<'a>(
    table: &Table,
    name: &str,
    set: &Set,
    elements: impl IntoIterator<Item = &'a Element>,
    message: u16,
) -> Result<Vec<Step>> {
    let verb = if message == NEW_ELEMENT { "adding elements to" } else { "removing elements from" };
    let subject = format!("{verb} set {name} of {}", describe(table));
    let encoded =
        element::encode(set, elements).map_err(|reason| Error::new(subject.clone(), Errno::EINVAL).because(reason))?;
    let mut lists = Vec::new();
    let mut list = Attributes::new();
    for element in &encoded {
        list = list.nested(1, element_attributes(element));
        if list.len() > ELEMENTS_BYTES {
            lists.push(std::mem::take(&mut list));
        }
    }
    if list.len() > 0 {
        lists.push(list);
    }
    let flags = if message == NEW_ELEMENT { NLM_F_CREATE } else { 0 };
    let content = |list| Attributes::after(&header(table.family)).text(1, &table.name).text(2, name).nested(3, list);
    Ok(lists.into_iter().map(|list| step(subject.clone(), message, flags, content(list))).collect())
}

fn element_attributes(element: &Encoded) -> Attributes {
    let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
    let mut attributes = Attributes::new();
    if !element.start {
        attributes = attributes.number(3, ELEMENT_END);
    }
    attributes = attributes.nested(1, value(&element.key));
    if !element.data.is_empty() {
        attributes = attributes.nested(2, value(&element.data));
    }
    if !element.comment.is_empty() {
        attributes = attributes.bytes(6, &note(&element.comment));
    }
    attributes
}

fn chain_step(table: &Table, chain: &Chain) -> Result<Step> {
    named("chain", &chain.name)?;
    let subject = format!("adding chain {} to {}", chain.name, describe(table));
    // The kernel would put the rules of both into one.
    if table.chains.iter().filter(|other| other.name == chain.name).count() > 1 {
        return Err(Error::new(subject, Errno::EINVAL).because("the table has two chains of this name"));
    }
    let mut content = Attributes::after(&header(table.family)).text(1, &table.name).text(3, &chain.name);
    if let Some(hook) = &chain.hook {
        let place = Attributes::new().number(1, hook.number()).bytes(2, &hook.priority.to_be_bytes());
        content = content.nested(4, place).number(5, hook.policy()).text(7, hook.kind.word());
    }
    Ok(step(subject, NEW_CHAIN, NLM_F_CREATE, content))
}

fn rule_step(table: &Table, chain: &Chain, rule: &Rule) -> Result<Step> {
    let comment = comment(table, chain, rule)?;
    let expressions = expressions(table, rule).map_err(|reason| rule_error(table, chain, rule, reason))?;
    let content = Attributes::after(&header(table.family))
        .text(1, &table.name)
        .text(2, &chain.name)
        .bytes(4 | 0x8000, &expressions)
        .bytes(7, &note(&comment));
    Ok(step(rule_subject(table, chain, rule), NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, content))
}

/// A comment as user data. The kernel keeps these bytes unread; the form is libnftnl's (type, length, text), so that nft
/// shows the comment.
fn note(comment: &str) -> Vec<u8> {
    let mut note = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    note.extend_from_slice(comment.as_bytes());
    note.push(0);
    note
}

fn rule_subject(table: &Table, chain: &Chain, rule: &Rule) -> String {
    format!("adding rule \"{}\" to chain {} of {}", rule.comment, chain.name, describe(table))
}

fn rule_error(table: &Table, chain: &Chain, rule: &Rule, reason: String) -> Error {
    Error::new(rule_subject(table, chain, rule), Errno::EINVAL).because(reason)
}

fn named(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() >= NAME || name.contains('\0') {
        let error = Error::new(format!("naming an nft {what} {name:?}"), Errno::EINVAL);
        return Err(error.because("a name has 1 to 255 bytes and no NUL"));
    }
    Ok(())
}

fn step(subject: String, message: u16, flags: u16, content: Attributes) -> Step {
    Step { subject, message: Message { kind: kind(message), flags, payload: content.finish() } }
}
