//! What rules of others would make of a packet: the kernel's small machine, as far as it can be run on paper. Whatever depends on
//! more than the packet is not known, and what follows from it is not certain.

use super::Family;
use super::members::Members;
use crate::netlink::attribute::{attributes, find, number, text};
use std::net::IpAddr;
use std::rc::Rc;

/// All sixteen registers of 32 bits (NFT_REG32_00 to 15), which are the four of 128 bits as well.
const REGISTERS: usize = 64;
const TCP: u8 = 6;
/// NFT_CT_STATE of a connection's first packet (NF_CT_STATE_BIT of IP_CT_NEW).
const NEW: u32 = 8;
/// XT_CONNTRACK_STATE, and XT_CONNTRACK_STATE_BIT of IP_CT_NEW (linux/netfilter/xt_conntrack.h).
const XT_STATE: u16 = 1;
const XT_NEW: u16 = 8;
/// NFT_LOOKUP_F_INV.
const INVERTED: u32 = 1;

/// The first packet of a TCP connection, on its way through this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// where it comes from
    pub source: IpAddr,
    /// where it goes, of the same family
    pub destination: IpAddr,
    /// name of the device that it came in by
    pub input: String,
    /// name of the device that it goes out by
    pub output: String,
}

impl Packet {
    /// The family of tables that see no other packets.
    pub(super) fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::Ip } else { Family::Ip6 }
    }

    /// The network header, as far as rules look at it (RFC 791, RFC 8200), and behind it the ports and the SYN of TCP.
    fn headers(&self) -> (Vec<u8>, Vec<u8>) {
        let network = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let fixed = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 63, TCP, 0, 0];
                [&fixed[..], &source.octets(), &destination.octets()].concat()
            }
            (source, destination) => {
                let octets = |address| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                [&[0x60, 0, 0, 0, 0, 20, TCP, 63][..], &octets(source), &octets(destination)].concat()
            }
        };
        // Ports that no rule has a reason to name: nothing is known of this connection but its ends.
        let (source, destination) = (61_001u16.to_be_bytes(), 61_002u16.to_be_bytes());
        let transport = [&source[..], &destination, &[0; 8], &[0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
        (network, transport)
    }
}

/// What a rule does to the packet. Neither: the next rule is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruling {
    pub(super) verdict: Verdict,
    /// all that it depends on is known
    pub(super) certain: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// The machine, with a packet in it.
#[derive(Clone)]
pub(super) struct Machine<'a> {
    packet: &'a Packet,
    network: Vec<u8>,
    transport: Vec<u8>,
    /// None: a rule has set it to what is not known
    pub(super) mark: Option<u32>,
    registers: [Option<u8>; REGISTERS],
}

/// A rule has come to its end: it does not hold, or decides.
enum Stop {
    Fails,
    Decides(Verdict),
}

impl<'a> Machine<'a> {
    pub(super) fn new(packet: &'a Packet, mark: Option<u32>) -> Self {
        let (network, transport) = packet.headers();
        Machine { packet, network, transport, mark, registers: [None; REGISTERS] }
    }

    /// Runs one rule's expressions (the content of NFTA_RULE_EXPRESSIONS). `members` looks sets up by name.
    pub(super) fn run(
        &mut self,
        expressions: &[u8],
        members: &mut impl FnMut(&str) -> Option<Rc<Members>>,
    ) -> Option<Ruling> {
        self.registers = [None; REGISTERS];
        let mut certain = true;
        for (_, expression) in attributes(expressions) {
            let (name, before) = (text(expression, 1).unwrap_or_default(), self.mark);
            match self.step(&name, find(expression, 2).unwrap_or_default(), members) {
                Ok(known) => {
                    certain &= known;
                    // Set or not: who knows.
                    self.mark = self.mark.filter(|_| certain || self.mark == before);
                }
                Err(Stop::Fails) => return None,
                Err(Stop::Decides(verdict)) => return Some(Ruling { verdict, certain }),
            }
        }
        None
    }

    /// One expression. Ok: the rule goes on, and whether that is certain.
    fn step(
        &mut self,
        name: &str,
        content: &[u8],
        members: &mut impl FnMut(&str) -> Option<Rc<Members>>,
    ) -> Result<bool, Stop> {
        let of = |kind| number(content, kind);
        let holds = |known: Option<bool>| match known {
            Some(true) => Ok(true),
            Some(false) => Err(Stop::Fails),
            None => Ok(false),
        };
        match name {
            "payload" if of(1).is_some() => {
                let header = match of(2) {
                    Some(1) => Some(&self.network),
                    Some(2) => Some(&self.transport),
                    _ => None,
                };
                let (offset, length) = (size(of(3)), size(of(4)));
                let loaded = header.map(|header| header.get(offset..offset.saturating_add(length)).map(<[u8]>::to_vec));
                match loaded {
                    // The kernel, too, takes a rule for none that looks behind the end.
                    Some(None) => return Err(Stop::Fails),
                    Some(Some(bytes)) => self.load(of(1), Some(&bytes)),
                    None => self.load(of(1), None),
                }
            }
            "meta" => match of(3) {
                Some(source) if of(2) == Some(3) => {
                    let bytes = self.read(Some(source), 4);
                    self.mark = bytes.and_then(|bytes| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)));
                }
                Some(_) => {}
                None => {
                    let value = self.meta(of(2));
                    self.load(of(1), value.as_deref());
                }
            },
            "ct" if of(1).is_some() => {
                let value = match of(2) {
                    Some(0) => Some(NEW.to_ne_bytes().to_vec()),
                    Some(1) => Some(vec![0]),
                    // Status and mark of a new connection.
                    Some(2 | 3) => Some(vec![0; 4]),
                    _ => None,
                };
                self.load(of(1), value.as_deref());
            }
            "bitwise" => {
                let value = self.bitwise(content);
                self.load(of(2), value.as_deref());
            }
            "immediate" => {
                let data = find(content, 2).unwrap_or_default();
                if let Some(verdict) = find(data, 2) {
                    return verdict_of(verdict);
                }
                self.load(of(1), find(data, 1));
            }
            "cmp" => {
                let wanted = find(content, 3).and_then(|data| find(data, 1)).unwrap_or_default();
                let found = self.read(of(1), wanted.len());
                return holds(found.and_then(|found| compare(&found, of(2), wanted)));
            }
            "range" => {
                let bound = |kind| find(content, kind).and_then(|data| find(data, 1)).unwrap_or_default();
                let (from, to) = (bound(3), bound(4));
                let found = self.read(of(1), from.len());
                return holds(found.map(|found| (from <= &found[..] && &found[..] <= to) == (of(2) == Some(0))));
            }
            "lookup" => {
                let Some(set) = members(&text(content, 1).unwrap_or_default()) else { return Ok(false) };
                let Some(key) = self.read(of(2), set.length) else { return Ok(false) };
                let Some(found) = set.find(&key) else { return Ok(false) };
                if found.is_some() == (of(5).unwrap_or(0) & INVERTED != 0) {
                    return Err(Stop::Fails);
                }
                if let (Some(target), Some(data)) = (of(3), found.and_then(|element| find(element, 2))) {
                    if let Some(verdict) = find(data, 2) {
                        return verdict_of(verdict);
                    }
                    self.load(Some(target), find(data, 1));
                }
            }
            "match" => return holds(xt_match(content, self.mark)),
            "target" => match text(content, 1).as_deref() {
                Some("REJECT") => return Err(Stop::Decides(Verdict::Drop)),
                Some("NFQUEUE") => return Err(Stop::Decides(Verdict::Accept)),
                Some("LOG" | "NFLOG" | "TRACE" | "TCPMSS" | "CT" | "NOTRACK" | "DSCP" | "TOS" | "CLASSIFY" | "SET") => {
                }
                // MARK, CONNMARK, and what may do the same.
                _ => self.mark = None,
            },
            "reject" => return Err(Stop::Decides(Verdict::Drop)),
            // What becomes of it is a process's decision.
            "queue" => return Err(Stop::Decides(Verdict::Accept)),
            // It depends on other packets whether they let the rule go on.
            // So it does for a named limit, and for one in a set, or a set that is full.
            "limit" | "quota" | "connlimit" | "objref" | "dynset" => return Ok(false),
            // These do in any case.
            "counter" | "log" | "last" | "notrack" | "dup" | "flow_offload" | "payload" | "ct" => {}
            // Whatever it has loaded is not known.
            _ => {
                self.registers = [None; REGISTERS];
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn meta(&self, key: Option<u32>) -> Option<Vec<u8>> {
        let v4 = self.packet.source.is_ipv4();
        let device = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            Some(bytes)
        };
        match key? {
            // NFT_META_PROTOCOL, MARK, IIFNAME, OIFNAME, NFPROTO, L4PROTO
            1 => Some(if v4 { 0x0800u16 } else { 0x86dd }.to_be_bytes().to_vec()),
            3 => self.mark.map(|mark| mark.to_ne_bytes().to_vec()),
            6 => device(&self.packet.input),
            7 => device(&self.packet.output),
            15 => Some(vec![self.packet.family().number()]),
            16 => Some(vec![TCP]),
            _ => None,
        }
    }

    /// (register & mask) ^ flip; shifts are not known.
    fn bitwise(&self, content: &[u8]) -> Option<Vec<u8>> {
        let operand = |kind| find(content, kind).and_then(|data| find(data, 1));
        let (mask, flip) = (operand(4)?, operand(5)?);
        let bytes = self.read(number(content, 1), size(number(content, 3)))?;
        let result = bytes.iter().zip(mask).zip(flip).map(|((byte, mask), flip)| byte & mask ^ flip);
        Some(result.collect())
    }

    /// What a register begins with, if all of it is known.
    fn read(&self, register: Option<u32>, length: usize) -> Option<Vec<u8>> {
        let start = place(register)?;
        self.registers.get(start..start.checked_add(length)?)?.iter().copied().collect()
    }

    /// Loads bytes; none: the register and all that may be part of its value are not known.
    fn load(&mut self, register: Option<u32>, bytes: Option<&[u8]>) {
        let Some(start) = place(register) else { return };
        let length = bytes.map_or(16, |bytes| bytes.len().next_multiple_of(4));
        for (index, byte) in self.registers.iter_mut().skip(start).take(length).enumerate() {
            // A value is padded with zeros to whole registers.
            *byte = bytes.map(|bytes| bytes.get(index).copied().unwrap_or(0));
        }
    }
}

/// Where a register begins: NFT_REG_1 to 4, or NFT_REG32_00 on (linux/netfilter/nf_tables.h).
fn place(register: Option<u32>) -> Option<usize> {
    match usize::try_from(register?).ok()? {
        wide @ 1..=4 => Some((wide - 1) * 16),
        narrow @ 8..=23 => Some((narrow - 8) * 4),
        _ => None,
    }
}

fn size(number: Option<u32>) -> usize {
    number.and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}

/// NFT_CMP_EQ, NEQ, LT, LTE, GT, GTE
fn compare(found: &[u8], operation: Option<u32>, wanted: &[u8]) -> Option<bool> {
    Some(match operation? {
        0 => found == wanted,
        1 => found != wanted,
        2 => found < wanted,
        3 => found <= wanted,
        4 => found > wanted,
        5 => found >= wanted,
        _ => return None,
    })
}

/// A match of iptables that nft_compat runs; what is not known here is not known.
fn xt_match(content: &[u8], mark: Option<u32>) -> Option<bool> {
    let info = find(content, 3).unwrap_or_default();
    let long = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let short = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
    match text(content, 1)?.as_str() {
        "comment" => Some(true),
        // struct xt_mark_mtinfo1
        "mark" => {
            let inverted = info.get(8).is_some_and(|byte| *byte != 0);
            Some((mark? & long(4)? == long(0)?) != inverted)
        }
        // struct xt_conntrack_mtinfo3: flags, inverted flags and states behind addresses, time and ports.
        "conntrack" => {
            let (flags, inverted, states) = (short(146)?, short(148)?, short(150)?);
            let is_in = (states & XT_NEW != 0) != (inverted & XT_STATE != 0);
            match flags {
                XT_STATE => Some(is_in),
                _ if flags & XT_STATE != 0 && !is_in => Some(false),
                _ => None,
            }
        }
        _ => None,
    }
}

fn verdict_of(verdict: &[u8]) -> Result<bool, Stop> {
    let chain = text(verdict, 2).unwrap_or_default();
    let code = find(verdict, 1).and_then(|code| code.first_chunk()).map(|code| i32::from_be_bytes(*code));
    Err(Stop::Decides(match code {
        // NF_DROP, then NFT_BREAK, NFT_JUMP, NFT_GOTO, NFT_RETURN
        Some(0) => Verdict::Drop,
        Some(-2) => return Err(Stop::Fails),
        Some(-3) => Verdict::Jump(chain),
        Some(-4) => Verdict::Goto(chain),
        Some(-5) => Verdict::Return,
        Some(-1) => return Ok(true),
        _ => Verdict::Accept,
    }))
}
