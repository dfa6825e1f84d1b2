//! The text form of a table, in the language of nft(8): for people, golden files, and as an oracle (`nft -f` reads it).

use super::{
    Action, Chain, ConntrackState, Element, Family, Field, Hook, HookPoint, Interface, Match, Policy, Protocol, Rule,
    Set, Table, Value,
};
use ipnetwork::IpNetwork;
use std::fmt::{self, Display, Formatter};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.word(), self.name)?;
        let mut first = true;
        let mut separate = |f: &mut Formatter<'_>| if std::mem::take(&mut first) { Ok(()) } else { writeln!(f) };
        for (name, set) in &self.sets {
            separate(f)?;
            write_set(f, name, set)?;
        }
        for chain in &self.chains {
            separate(f)?;
            write_chain(f, self, chain)?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let types = |fields: &[Field]| joined(fields.iter().map(|field| field.word()), " . ");
    if set.data.is_empty() {
        writeln!(f, "\tset {name} {{\n\t\ttype {}", types(&set.key))?;
    } else {
        writeln!(f, "\tmap {name} {{\n\t\ttype {} : {}", types(&set.key), types(&set.data))?;
    }
    if set.interval {
        writeln!(f, "\t\tflags interval")?;
    }
    if !set.elements.is_empty() {
        writeln!(f, "\t\telements = {{ {} }}", joined(&set.elements, ", "))?;
    }
    writeln!(f, "\t}}")
}

fn write_chain(f: &mut Formatter<'_>, table: &Table, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {} {{", chain.name)?;
    if let Some(hook) = &chain.hook {
        writeln!(f, "\t\t{hook}")?;
    }
    for rule in &chain.rules {
        write!(f, "\t\t")?;
        write_rule(f, table, rule)?;
        writeln!(f)?;
    }
    writeln!(f, "\t}}")
}

fn write_rule(f: &mut Formatter<'_>, table: &Table, rule: &Rule) -> fmt::Result {
    for condition in &rule.matches {
        write_match(f, table, condition)?;
        write!(f, " ")?;
    }
    match &rule.action {
        Action::Accept => write!(f, "accept")?,
        Action::Drop => write!(f, "drop")?,
        Action::Return => write!(f, "return")?,
        Action::Jump(chain) => write!(f, "jump {chain}")?,
        Action::Masquerade { fully_random: false } => write!(f, "masquerade")?,
        Action::Masquerade { fully_random: true } => write!(f, "masquerade fully-random")?,
        Action::SetMark { mask: u32::MAX, value } => write!(f, "meta mark set 0x{value:08x}")?,
        Action::SetMark { mask, value } => {
            write!(f, "meta mark set meta mark & 0x{:08x} | 0x{:08x}", !mask, value & mask)?;
        }
        Action::DestinationNat { map } => {
            let (key, data) = table.sets.get(map).map(|map| (&map.key[..], &map.data[..])).unwrap_or_default();
            let family = if data.contains(&Field::Ipv6Address) { Family::Ip6 } else { Family::Ip };
            write!(f, "dnat {} to {} map @{map}", family.word(), selectors("daddr", "dport", key))?;
        }
        Action::Counter => write!(f, "counter")?,
    }
    if !rule.comment.is_empty() {
        write!(f, " comment \"{}\"", rule.comment)?;
    }
    Ok(())
}

fn write_match(f: &mut Formatter<'_>, table: &Table, condition: &Match) -> fmt::Result {
    match condition {
        Match::Source(network) => write!(f, "{} saddr {}", protocol_of(*network), prefix(*network)),
        Match::NotSource(network) => write!(f, "{} saddr != {}", protocol_of(*network), prefix(*network)),
        Match::Destination(network) => write!(f, "{} daddr {}", protocol_of(*network), prefix(*network)),
        Match::NotDestination(network) => write!(f, "{} daddr != {}", protocol_of(*network), prefix(*network)),
        Match::SourceIn(set) => write!(f, "{} @{set}", selectors("saddr", "sport", key_of(table, set))),
        Match::SourceNotIn(set) => write!(f, "{} != @{set}", selectors("saddr", "sport", key_of(table, set))),
        Match::DestinationIn(set) => write!(f, "{} @{set}", selectors("daddr", "dport", key_of(table, set))),
        Match::DestinationNotIn(set) => write!(f, "{} != @{set}", selectors("daddr", "dport", key_of(table, set))),
        Match::Input(device) => write!(f, "iifname {device}"),
        Match::NotInput(device) => write!(f, "iifname != {device}"),
        Match::Output(device) => write!(f, "oifname {device}"),
        Match::NotOutput(device) => write!(f, "oifname != {device}"),
        Match::Mark { mask: u32::MAX, value } => write!(f, "meta mark 0x{value:08x}"),
        Match::NotMark { mask: u32::MAX, value } => write!(f, "meta mark != 0x{value:08x}"),
        Match::Mark { mask, value } => write!(f, "meta mark & 0x{mask:08x} == 0x{value:08x}"),
        Match::NotMark { mask, value } => write!(f, "meta mark & 0x{mask:08x} != 0x{value:08x}"),
        Match::Conntrack(states) => write!(f, "ct state {}", joined(states.iter().map(|state| state.word()), ",")),
        Match::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
        Match::DestinationPort(protocol, port) => write!(f, "{protocol} dport {port}"),
        Match::DestinationLocal => write!(f, "fib daddr type local"),
        Match::Family(family) => write!(f, "meta nfproto {}", if *family == Family::Ip6 { "ipv6" } else { "ipv4" }),
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let point = match self.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {} hook {point} priority {}; policy {policy};", self.kind.word(), self.priority)
    }
}

impl Display for Interface {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Interface::Named(name) => write!(f, "\"{name}\""),
            Interface::Prefix(name) => write!(f, "\"{name}*\""),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmpv6 => "ipv6-icmp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", joined(&self.key, " . "))?;
        if !self.comment.is_empty() {
            write!(f, " comment \"{}\"", self.comment)?;
        }
        if !self.data.is_empty() {
            write!(f, " : {}", joined(&self.data, " . "))?;
        }
        Ok(())
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Value::Address(network) => write!(f, "{}", prefix(*network)),
            Value::Protocol(protocol) => write!(f, "{protocol}"),
            Value::Port(port) => write!(f, "{port}"),
            Value::Mac(mac) => write!(f, "{mac}"),
            Value::Device(name) => write!(f, "\"{}\"", String::from_utf8_lossy(name).trim_end_matches('\0')),
        }
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Family {
    /// The family's name in nft(8).
    pub(super) fn word(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        }
    }
}

impl Field {
    fn word(self) -> &'static str {
        match self {
            Field::Ipv4Address => "ipv4_addr",
            Field::Ipv6Address => "ipv6_addr",
            Field::Protocol => "inet_proto",
            Field::Port => "inet_service",
            Field::SourceMac => "ether_addr",
            Field::InputDevice | Field::OutputDevice => "ifname",
        }
    }
}

impl ConntrackState {
    fn word(self) -> &'static str {
        match self {
            ConntrackState::Invalid => "invalid",
            ConntrackState::Established => "established",
            ConntrackState::Related => "related",
            ConntrackState::New => "new",
            ConntrackState::Untracked => "untracked",
        }
    }
}

fn key_of<'a>(table: &'a Table, set: &str) -> &'a [Field] {
    table.sets.get(set).map(|set| &set.key[..]).unwrap_or_default()
}

fn selectors(address: &str, port: &str, key: &[Field]) -> String {
    let selector = |field: &Field| match field {
        Field::Ipv4Address => format!("ip {address}"),
        Field::Ipv6Address => format!("ip6 {address}"),
        Field::Protocol => "meta l4proto".into(),
        Field::Port => format!("th {port}"),
        Field::SourceMac => "ether saddr".into(),
        Field::InputDevice => "iifname".into(),
        Field::OutputDevice => "oifname".into(),
    };
    joined(key.iter().map(selector), " . ")
}

fn protocol_of(network: IpNetwork) -> &'static str {
    if network.is_ipv4() { "ip" } else { "ip6" }
}

fn prefix(network: IpNetwork) -> String {
    let full = if network.is_ipv4() { 32 } else { 128 };
    match network.prefix() {
        length if length == full => network.ip().to_string(),
        length => format!("{}/{length}", network.network()),
    }
}

fn joined(parts: impl IntoIterator<Item = impl Display>, separator: &str) -> String {
    parts.into_iter().map(|part| part.to_string()).collect::<Vec<_>>().join(separator)
}
