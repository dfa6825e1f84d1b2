//! Whether packets get through the tables of others: an accept in one table does not overrule a drop in another.

use super::encode::{GET_CHAIN, GET_ELEMENT, GET_RULE, GET_SET, GET_TABLE, header};
use super::encode::{NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE};
use super::machine::{Machine, Packet, Verdict};
use super::members::Members;
use super::{Family, Nft, observe};
use crate::Result;
use crate::netlink::attribute::{Attributes, attributes, find, number, text};
use crate::netlink::socket::{NLM_F_DUMP, Socket};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// NF_INET_FORWARD.
const FORWARD: u32 = 2;
/// NF_DROP, as a chain's policy.
const DROP: u32 = 0;
/// NFT_TABLE_F_DORMANT.
const DORMANT: u32 = 1;
/// Rules that are tried for one packet. Beyond that it counts as let through: an unfounded complaint is worse than none.
const MOST_RULES: usize = 50_000;
/// Elements of a set that are looked at, as long lists of addresses are read anew whenever rules change. Of larger ones it is
/// not known what they hold.
const MOST_ELEMENTS: usize = 10_000;
/// The kernel allows jumps as deep (NFT_JUMP_STACK_SIZE); as many decisions that are not certain are followed both ways.
const MOST_JUMPS: usize = 16;

/// A base chain that drops a packet for certain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// the table's family
    pub family: Family,
    /// the table
    pub table: String,
    /// its chain at the hook `forward`
    pub chain: String,
    /// what drops
    pub by: Dropper,
}

/// What drops a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropper {
    /// the chain's policy: no rule has decided
    Policy,
    /// a rule of this chain
    Rule(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}, chain {}", self.family, self.table, self.chain)?;
        match &self.by {
            Dropper::Policy => write!(f, " (policy drop)"),
            Dropper::Rule(chain) if *chain == self.chain => write!(f, " (a rule that drops or rejects)"),
            Dropper::Rule(chain) => write!(f, " (a rule in {chain} that drops or rejects)"),
        }
    }
}

/// A base chain, of whatever table, that sees forwarded packets and may drop them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardChain {
    family: Family,
    table: String,
    name: String,
    /// packets that no rule decides on are dropped
    drops: bool,
}

impl Nft {
    /// The base chains at the hook `forward`, of all tables but those that sleep. Tables of the legacy iptables are none of
    /// nftables, and not seen. Reads only.
    pub fn forward_chains(&mut self) -> Result<Vec<ForwardChain>> {
        let mut chains = Vec::new();
        for family in [Family::Ip, Family::Ip6, Family::Inet] {
            for chain in base_chains(&mut self.socket, family)? {
                if !is_dormant(&mut self.socket, family, &chain.table)? {
                    chains.push(chain);
                }
            }
        }
        Ok(chains)
    }

    /// Those of `chains` that are certain to drop `packet`. Where that depends on what a packet alone does not tell, as the time
    /// or the number of others, it counts as let through. Reads only.
    pub fn obstacles(&mut self, chains: &[ForwardChain], packet: &Packet) -> Result<Vec<Obstacle>> {
        let mut found = Vec::new();
        let is_met = |chain: &&ForwardChain| [packet.family(), Family::Inet].contains(&chain.family);
        for ForwardChain { family, table, name, drops } in chains.iter().filter(is_met) {
            let mut walk = Walk { table: Reading::of(&mut self.socket, *family, table), rules: 0 };
            if let Some(by) = walk.from(vec![(name.clone(), 0)], Machine::new(packet, Some(0)), *drops, 0)? {
                found.push(Obstacle { family: *family, table: table.clone(), chain: name.clone(), by });
            }
        }
        Ok(found)
    }
}

/// A table of somebody's, read as far as it was needed.
struct Reading<'a> {
    /// none: there is nothing more to be read
    socket: Option<&'a mut Socket>,
    family: Family,
    table: &'a str,
    /// the rules' expressions
    chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// none: it has too many elements, or is none
    sets: BTreeMap<String, Option<Rc<Members>>>,
}

impl<'a> Reading<'a> {
    fn of(socket: &'a mut Socket, family: Family, table: &'a str) -> Self {
        Reading { socket: Some(socket), family, table, chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    fn rule(&mut self, chain: &str, index: usize) -> Result<Option<Vec<u8>>> {
        if let Some(socket) = self.socket.as_deref_mut().filter(|_| !self.chains.contains_key(chain)) {
            self.chains.insert(chain.to_owned(), rules(socket, self.family, self.table, chain)?);
        }
        Ok(self.chains.get(chain).and_then(|rules| rules.get(index)).cloned())
    }

    fn members(&mut self, set: &str) -> Option<Rc<Members>> {
        if let Some(socket) = self.socket.as_deref_mut().filter(|_| !self.sets.contains_key(set)) {
            let members = members(socket, self.family, self.table, set).ok().flatten();
            self.sets.insert(set.to_owned(), members.map(Rc::new));
        }
        self.sets.get(set)?.clone()
    }
}

/// A packet's way through one base chain.
struct Walk<'a> {
    table: Reading<'a>,
    /// tried so far
    rules: usize,
}

impl Walk<'_> {
    /// Goes on from the rule that is on top of `stack` (chains, with the next rule of each), as `machine` has the packet by then;
    /// what drops it, if anything does in any case.
    fn from(
        &mut self,
        mut stack: Vec<(String, usize)>,
        mut machine: Machine<'_>,
        drops: bool,
        guesses: usize,
    ) -> Result<Option<Dropper>> {
        while let Some((chain, index)) = stack.pop() {
            let Some(rule) = self.table.rule(&chain, index)? else { continue };
            self.rules += 1;
            if self.rules > MOST_RULES || stack.len() > MOST_JUMPS || guesses > MOST_JUMPS {
                return Ok(None);
            }
            let ruling = machine.run(&rule, &mut |set: &str| self.table.members(set));
            let mut taken = stack.clone();
            stack.push((chain.clone(), index + 1));
            let Some(ruling) = ruling else { continue };
            match ruling.verdict {
                Verdict::Accept => return Ok(None),
                Verdict::Drop if ruling.certain => return Ok(Some(Dropper::Rule(chain))),
                Verdict::Drop => continue,
                Verdict::Return => {}
                Verdict::Goto(target) => taken.push((target, 0)),
                Verdict::Jump(target) => taken.extend([(chain, index + 1), (target, 0)]),
            }
            if ruling.certain {
                stack = taken;
            } else if self.from(taken, machine.clone(), drops, guesses + 1)?.is_none() {
                return Ok(None);
            }
        }
        Ok(drops.then_some(Dropper::Policy))
    }
}

fn base_chains(socket: &mut Socket, family: Family) -> Result<Vec<ForwardChain>> {
    ask(
        socket,
        (GET_CHAIN, NEW_CHAIN),
        NLM_F_DUMP,
        Attributes::after(&header(family)),
        |found: &mut Vec<_>, payload| {
            let hook = find(payload, 4).and_then(|hook| number(hook, 1));
            if hook == Some(FORWARD) && text(payload, 7).is_some_and(|kind| kind == "filter") {
                let of = |kind| text(payload, kind).unwrap_or_default();
                found.push(ForwardChain { family, table: of(1), name: of(3), drops: number(payload, 5) == Some(DROP) });
            }
        },
    )
}

fn is_dormant(socket: &mut Socket, family: Family, table: &str) -> Result<bool> {
    let content = Attributes::after(&header(family)).text(1, table);
    ask(socket, (GET_TABLE, NEW_TABLE), 0, content, |found: &mut bool, payload| {
        *found = number(payload, 2).unwrap_or(0) & DORMANT != 0;
    })
}

fn rules(socket: &mut Socket, family: Family, table: &str, chain: &str) -> Result<Vec<Vec<u8>>> {
    let content = Attributes::after(&header(family)).text(1, table).text(2, chain);
    ask(socket, (GET_RULE, NEW_RULE), NLM_F_DUMP, content, |found: &mut Vec<Vec<u8>>, payload| {
        // Old kernels ignore the names and answer with the rules of all tables.
        let is = |kind, name: &str| text(payload, kind).is_some_and(|found| found == name);
        if is(1, table) && is(2, chain) && found.len() <= MOST_RULES {
            found.push(find(payload, 4).unwrap_or_default().to_vec());
        }
    })
}

/// A set with its elements. None: there is none, or it has more than are looked at.
fn members(socket: &mut Socket, family: Family, table: &str, set: &str) -> Result<Option<Members>> {
    let content = || Attributes::after(&header(family)).text(1, table);
    let of = content().text(2, set);
    let description = ask(socket, (GET_SET, NEW_SET), 0, of, |found: &mut Option<Members>, payload| {
        *found = Some(Members::described(payload));
    })?;
    let Some(description) = description else { return Ok(None) };
    let of = content().text(2, set);
    let mut members = ask(socket, (GET_ELEMENT, NEW_ELEMENT), NLM_F_DUMP, of, |found: &mut Members, payload| {
        fill(found, find(payload, 3).unwrap_or_default());
    })?;
    (members.flags, members.length) = (description.flags, description.length);
    Ok(Some(members).filter(|members| members.count <= MOST_ELEMENTS))
}

/// Takes in elements, and one more than are looked at, which tells that there are too many.
fn fill(members: &mut Members, list: &[u8]) {
    let room = (MOST_ELEMENTS + 1).saturating_sub(members.count);
    attributes(list).take(room).for_each(|(_, element)| members.add(element));
}

/// One question to the kernel; what is not there, or no more, is an empty answer.
fn ask<T: Default>(
    socket: &mut Socket,
    kinds: (u16, u16),
    flags: u16,
    content: Attributes,
    each: impl FnMut(&mut T, &[u8]),
) -> Result<T> {
    observe::ask(socket, || "reading the nftables of others".into(), kinds, flags, content, each)
}

/// For the fuzz targets: a packet's way through a table, from the first of its chains on, where these (attributes of type 1: a
/// name, and rules as the kernel has them) and sets (type 2: as the kernel describes them, with their elements beside) are these. A drop by a rule is one whatever
/// the policy is.
#[cfg(fuzzing)]
pub(super) fn pass(bytes: &[u8]) {
    let mut table =
        Reading { socket: None, family: Family::Ip, table: "t", chains: BTreeMap::new(), sets: BTreeMap::new() };
    let mut base = None;
    for (kind, object) in attributes(bytes) {
        let name = text(object, if kind == 1 { 3 } else { 2 }).unwrap_or_default();
        if kind == 1 {
            let rules = attributes(object).filter(|(kind, _)| *kind == 4).map(|(_, rule)| rule.to_vec());
            base.get_or_insert_with(|| name.clone());
            table.chains.insert(name, rules.collect());
        } else {
            let mut members = Members::described(object);
            fill(&mut members, find(object, 13).unwrap_or_default());
            table.sets.insert(name, Some(Rc::new(members)));
        }
    }
    let Some(base) = base else { return };
    let packet = Packet {
        source: [10, 42, 1, 2].into(),
        destination: [10, 42, 2, 2].into(),
        input: "cni0".into(),
        output: "flannel.1".into(),
    };
    let mut walk = Walk { table, rules: 0 };
    let mut outcome = |drops| {
        walk.rules = 0;
        walk.from(vec![(base.clone(), 0)], Machine::new(&packet, Some(0)), drops, 0).expect("nothing is read")
    };
    let (by_rule, any) = (outcome(false), outcome(true));
    assert!(by_rule.is_none() || by_rule == any, "{by_rule:?}, {any:?}");
}
