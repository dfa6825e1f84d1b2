//! Rules as the kernel's small machine runs them: load into registers, compare, act (linux/netfilter/nf_tables.h).

use super::element::octets;
use super::{Action, ConntrackState, Family, Field, Interface, Match, Rule, Set, Table};
use crate::netlink::attribute::Attributes;
use ipnetwork::IpNetwork;

const VERDICT: u32 = 0;
/// NFT_REG32_00, the first register of 32 bits.
const REGISTER: u32 = 8;

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
/// RTN_LOCAL (linux/rtnetlink.h).
const LOCAL: u32 = 2;
const DNAT: u32 = 1;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY (linux/netfilter/nf_nat.h).
const RANDOM_FULLY: u32 = 1 << 4;
/// IFNAMSIZ, with the NUL.
const INTERFACE_NAME: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal = 0,
    Unequal = 1,
}
use Comparison::{Equal, Unequal};
use Side::{Destination, Source};

/// The expressions of a rule of `table`: the content of NFTA_RULE_EXPRESSIONS. An error tells what contradicts the table.
pub(super) fn expressions(table: &Table, rule: &Rule) -> Result<Vec<u8>, String> {
    let mut program = Program { table, guarded: None, list: Attributes::new() };
    for condition in &rule.matches {
        program.condition(condition)?;
    }
    program.action(&rule.action)?;
    Ok(program.list.finish())
}

struct Program<'a> {
    table: &'a Table,
    /// the family that the packet is known to be of, in an inet table
    guarded: Option<Family>,
    list: Attributes,
}

impl<'a> Program<'a> {
    fn condition(&mut self, condition: &Match) -> Result<(), String> {
        match condition {
            Match::Source(network) => self.address(Source, *network, Equal),
            Match::NotSource(network) => self.address(Source, *network, Unequal),
            Match::Destination(network) => self.address(Destination, *network, Equal),
            Match::NotDestination(network) => self.address(Destination, *network, Unequal),
            Match::SourceIn(set) => self.member(Source, set, Equal),
            Match::SourceNotIn(set) => self.member(Source, set, Unequal),
            Match::DestinationIn(set) => self.member(Destination, set, Equal),
            Match::DestinationNotIn(set) => self.member(Destination, set, Unequal),
            Match::Input(device) => self.device(META_IIFNAME, device, Equal),
            Match::NotInput(device) => self.device(META_IIFNAME, device, Unequal),
            Match::Output(device) => self.device(META_OIFNAME, device, Equal),
            Match::NotOutput(device) => self.device(META_OIFNAME, device, Unequal),
            Match::Mark { mask, value } => self.mark(*mask, *value, Equal),
            Match::NotMark { mask, value } => self.mark(*mask, *value, Unequal),
            Match::Conntrack(states) => {
                let bits = states.iter().fold(0, |bits, state| bits | state.bit());
                self.load_conntrack_state();
                self.mask(&bits.to_ne_bytes(), &[0; 4]);
                self.compare(Unequal, &[0; 4]);
                Ok(())
            }
            Match::Protocol(protocol) => {
                self.load_meta(META_L4PROTO, REGISTER);
                self.compare(Equal, &[*protocol as u8]);
                Ok(())
            }
            Match::DestinationPort(protocol, port) => {
                self.load_meta(META_L4PROTO, REGISTER);
                self.compare(Equal, &[*protocol as u8]);
                self.load_payload(TRANSPORT_HEADER, 2, 2, REGISTER);
                self.compare(Equal, &port.to_be_bytes());
                Ok(())
            }
            Match::DestinationLocal => {
                let fib = Attributes::new().number(1, REGISTER).number(2, FIB_RESULT_ADDRTYPE).number(3, FIB_DADDR);
                self.push("fib", fib);
                self.compare(Equal, &LOCAL.to_ne_bytes());
                Ok(())
            }
            Match::Family(family) => {
                let number = match family {
                    Family::Ip | Family::Ip6 => family.number(),
                    Family::Inet | Family::Bridge => return Err(format!("no packet is of the family {family}")),
                };
                self.load_meta(META_NFPROTO, REGISTER);
                self.compare(Equal, &[number]);
                self.guarded = Some(*family);
                Ok(())
            }
        }
    }

    fn action(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Accept => self.verdict(1, None),
            Action::Drop => self.verdict(0, None),
            Action::Return => self.verdict(-5, None),
            Action::Jump(chain) => {
                if !self.table.chains.iter().any(|candidate| candidate.name == *chain) {
                    return Err(format!("the table has no chain {chain}"));
                }
                self.verdict(-3, Some(chain));
            }
            Action::Masquerade { fully_random: false } => self.push("masq", Attributes::new()),
            Action::Masquerade { fully_random: true } => self.push("masq", Attributes::new().number(1, RANDOM_FULLY)),
            Action::SetMark { mask: u32::MAX, value: mark } => {
                let mark = value(&mark.to_ne_bytes());
                self.push("immediate", Attributes::new().number(1, REGISTER).nested(2, mark));
                self.push("meta", Attributes::new().number(2, META_MARK).number(3, REGISTER));
            }
            Action::SetMark { mask, value } => {
                self.load_meta(META_MARK, REGISTER);
                self.mask(&(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
                self.push("meta", Attributes::new().number(2, META_MARK).number(3, REGISTER));
            }
            Action::DestinationNat { map } => self.destination_nat(map)?,
            // Both counts have to be named, or the kernel's dump begins with what memory held.
            Action::Counter => {
                self.push("counter", Attributes::new().bytes(1, &[0; 8]).bytes(2, &[0; 8]));
            }
        }
        Ok(())
    }

    fn destination_nat(&mut self, name: &str) -> Result<(), String> {
        let map = self.set(name)?;
        let family = match map.data[..] {
            [Field::Ipv4Address] | [Field::Ipv4Address, Field::Port] => Family::Ip,
            [Field::Ipv6Address] | [Field::Ipv6Address, Field::Port] => Family::Ip6,
            _ => return Err(format!("the map {name} does not lead to an address, or an address and a port")),
        };
        self.guard(family)?;
        self.load_fields(Destination, &map.key)?;
        let lookup = Attributes::new().text(1, name).number(2, REGISTER).number(3, REGISTER);
        self.push("lookup", lookup);
        let mut nat = Attributes::new().number(1, DNAT).number(2, u32::from(family.number())).number(3, REGISTER);
        if let [address, Field::Port] = map.data[..] {
            nat = nat.number(5, REGISTER + registers(address));
        }
        self.push("nat", nat);
        Ok(())
    }

    fn address(&mut self, side: Side, network: IpNetwork, comparison: Comparison) -> Result<(), String> {
        let field = if network.is_ipv4() { Field::Ipv4Address } else { Field::Ipv6Address };
        self.load_fields(side, &[field])?;
        let (address, mask) = (octets(network.network()), octets(network.mask()));
        if mask.iter().any(|byte| *byte != 0xff) {
            self.mask(&mask, &vec![0; mask.len()]);
        }
        self.compare(comparison, &address);
        Ok(())
    }

    fn member(&mut self, side: Side, name: &str, comparison: Comparison) -> Result<(), String> {
        let set = self.set(name)?;
        self.load_fields(side, &set.key)?;
        // NFT_LOOKUP_F_INV has the value of "unequal".
        let lookup = Attributes::new().text(1, name).number(2, REGISTER).number(5, comparison as u32);
        self.push("lookup", lookup);
        Ok(())
    }

    fn device(&mut self, key: u32, device: &Interface, comparison: Comparison) -> Result<(), String> {
        let (Interface::Named(name) | Interface::Prefix(name)) = device;
        if name.is_empty() || name.len() >= INTERFACE_NAME || name.contains('\0') {
            return Err(format!("{name:?} is no name of a device (1 to 15 bytes)"));
        }
        let mut bytes = name.as_bytes().to_vec();
        if matches!(device, Interface::Named(_)) {
            bytes.resize(INTERFACE_NAME, 0);
        }
        self.load_meta(key, REGISTER);
        self.compare(comparison, &bytes);
        Ok(())
    }

    fn mark(&mut self, mask: u32, value: u32, comparison: Comparison) -> Result<(), String> {
        if value & !mask != 0 {
            return Err(format!(
                "the mark {value:#x} has bits outside of the mask {mask:#x}: the rule could never hold"
            ));
        }
        self.load_meta(META_MARK, REGISTER);
        if mask != u32::MAX {
            self.mask(&mask.to_ne_bytes(), &[0; 4]);
        }
        self.compare(comparison, &value.to_ne_bytes());
        Ok(())
    }

    fn set(&self, name: &str) -> Result<&'a Set, String> {
        self.table.sets.get(name).ok_or_else(|| format!("the table has no set {name}"))
    }

    /// Lets only packets of `family` go on, where the table does not see to it.
    fn guard(&mut self, family: Family) -> Result<(), String> {
        if self.table.family == family || self.guarded == Some(family) {
            return Ok(());
        }
        if self.table.family != Family::Inet || self.guarded.is_some() {
            return Err("an address of the other family can never match".into());
        }
        self.condition(&Match::Family(family))
    }

    /// Loads the fields of a set's key side by side.
    fn load_fields(&mut self, side: Side, fields: &[Field]) -> Result<(), String> {
        // A guard uses the first register: all of them come before the first load.
        for field in fields {
            match field {
                Field::Ipv4Address => self.guard(Family::Ip)?,
                Field::Ipv6Address => self.guard(Family::Ip6)?,
                Field::SourceMac if self.table.family != Family::Bridge => {
                    return Err("only frames on bridges are sure to have a hardware address".into());
                }
                Field::SourceMac | Field::Protocol | Field::Port | Field::InputDevice | Field::OutputDevice => {}
            }
        }
        let mut register = REGISTER;
        for field in fields {
            let source = side == Source;
            match field {
                // RFC 791, RFC 8200: where the addresses are. Ports come first in each transport header.
                Field::Ipv4Address => self.load_payload(NETWORK_HEADER, if source { 12 } else { 16 }, 4, register),
                Field::Ipv6Address => self.load_payload(NETWORK_HEADER, if source { 8 } else { 24 }, 16, register),
                Field::Port => self.load_payload(TRANSPORT_HEADER, if source { 0 } else { 2 }, 2, register),
                Field::Protocol => self.load_meta(META_L4PROTO, register),
                // IEEE 802.3: behind the destination's address.
                Field::SourceMac => self.load_payload(LINK_HEADER, 6, 6, register),
                Field::InputDevice => self.load_meta(META_IIFNAME, register),
                Field::OutputDevice => self.load_meta(META_OIFNAME, register),
            }
            register += registers(*field);
        }
        Ok(())
    }

    fn load_payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        let load = Attributes::new().number(1, register).number(2, base).number(3, offset).number(4, length);
        self.push("payload", load);
    }

    fn load_meta(&mut self, key: u32, register: u32) {
        self.push("meta", Attributes::new().number(1, register).number(2, key));
    }

    fn load_conntrack_state(&mut self) {
        self.push("ct", Attributes::new().number(1, REGISTER).number(2, 0));
    }

    /// The register becomes (register & mask) ^ flip.
    fn mask(&mut self, mask: &[u8], flip: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let registers = Attributes::new().number(1, REGISTER).number(2, REGISTER).number(3, length);
        self.push("bitwise", registers.nested(4, value(mask)).nested(5, value(flip)));
    }

    fn compare(&mut self, comparison: Comparison, bytes: &[u8]) {
        let compare = Attributes::new().number(1, REGISTER).number(2, comparison as u32).nested(3, value(bytes));
        self.push("cmp", compare);
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        let mut verdict = Attributes::new().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        let data = Attributes::new().nested(2, verdict);
        self.push("immediate", Attributes::new().number(1, VERDICT).nested(2, data));
    }

    fn push(&mut self, name: &str, content: Attributes) {
        let expression = Attributes::new().text(1, name).nested(2, content);
        self.list = std::mem::take(&mut self.list).nested(1, expression);
    }
}

impl Family {
    /// NFPROTO_* (linux/netfilter.h).
    pub(super) fn number(self) -> u8 {
        match self {
            Family::Ip => 2,
            Family::Ip6 => 10,
            Family::Inet => 1,
            Family::Bridge => 7,
        }
    }
}

impl ConntrackState {
    /// The bit of `ct state` (linux/netfilter/nf_conntrack_common.h, NF_CT_STATE_BIT).
    fn bit(self) -> u32 {
        match self {
            ConntrackState::Invalid => 1,
            ConntrackState::Established => 2,
            ConntrackState::Related => 4,
            ConntrackState::New => 8,
            ConntrackState::Untracked => 64,
        }
    }
}

/// How many registers of 32 bits a field takes.
fn registers(field: Field) -> u32 {
    match field {
        Field::Ipv6Address | Field::InputDevice | Field::OutputDevice => 4,
        Field::SourceMac => 2,
        Field::Ipv4Address | Field::Protocol | Field::Port => 1,
    }
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}
