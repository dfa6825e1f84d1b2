//! Whether packets get through the tables of others: an accept in one table does not overrule a drop in another.

use super::encode::{GET_CHAIN, GET_ELEMENT, GET_RULE, GET_SET, GET_TABLE, header};
use super::encode::{NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE};
use super::machine::{Machine, Members, Packet, Verdict};
use super::{Family, Nft, observe};
use crate::Result;
use crate::netlink::attribute::{Attributes, attributes, find, number, text};
use crate::netlink::socket::{NLM_F_DUMP, Socket};
use std::collections::BTreeMap;
use std::fmt;

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
            let mut walk = Walk { socket: &mut self.socket, family: *family, table, chains: BTreeMap::new(), rules: 0 };
            if let Some(by) = walk.from(vec![(name.clone(), 0)], Machine::new(packet, Some(0)), *drops, 0)? {
                found.push(Obstacle { family: *family, table: table.clone(), chain: name.clone(), by });
            }
        }
        Ok(found)
    }
}

/// A packet's way through one base chain.
struct Walk<'a> {
    socket: &'a mut Socket,
    family: Family,
    table: &'a str,
    /// the rules' expressions, as far as they were needed
    chains: BTreeMap<String, Vec<Vec<u8>>>,
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
            let Some(rule) = self.rule(&chain, index)? else { continue };
            self.rules += 1;
            if self.rules > MOST_RULES || stack.len() > MOST_JUMPS || guesses > MOST_JUMPS {
                return Ok(None);
            }
            let (family, table) = (self.family, self.table);
            let ruling = machine.run(&rule, &mut |set: &str| members(self.socket, family, table, set).ok().flatten());
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

    fn rule(&mut self, chain: &str, index: usize) -> Result<Option<Vec<u8>>> {
        if !self.chains.contains_key(chain) {
            let rules = rules(self.socket, self.family, self.table, chain)?;
            self.chains.insert(chain.to_owned(), rules);
        }
        Ok(self.chains.get(chain).and_then(|rules| rules.get(index)).cloned())
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
    let description = content().text(2, set);
    let mut members = ask(socket, (GET_SET, NEW_SET), 0, description, |found: &mut Option<Members>, payload| {
        let length = number(payload, 5).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        *found = Some(Members { flags: number(payload, 3).unwrap_or(0), length, ..Members::default() });
    })?;
    if let Some(members) = &mut members {
        let content = content().text(2, set);
        let dump = |found: &mut Vec<Vec<u8>>, payload: &[u8]| {
            let list = find(payload, 3).unwrap_or_default();
            // One more tells that there are too many.
            let room = (MOST_ELEMENTS + 1).saturating_sub(found.len());
            found.extend(attributes(list).take(room).map(|(_, element)| element.to_vec()));
        };
        members.elements = ask(socket, (GET_ELEMENT, NEW_ELEMENT), NLM_F_DUMP, content, dump)?;
    }
    Ok(members.filter(|members| members.elements.len() <= MOST_ELEMENTS))
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
