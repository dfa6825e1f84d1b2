//! Links: network devices of every kind.

use super::ipip::IpipAttributes;
use super::socket::{Message, NLM_F_DUMP};
use super::tun;
use super::vxlan::VxlanAttributes;
use super::{Netlink, attributes, refused};
use crate::{Error, Mac, Result, sysctl};
use netlink_packet_core::{NlaBuffer, Parseable, ParseableParametrized};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader,
    LinkMessage,
};
use nix::errno::Errno;
use std::fmt;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// number, unique in its namespace
    pub index: u32,
    /// name, unique in its namespace
    pub name: String,
    /// what it is
    pub kind: LinkKind,
    /// hardware address, if it is an Ethernet address
    pub mac: Option<Mac>,
    /// MTU in bytes
    pub mtu: u32,
    /// it is switched on
    pub up: bool,
    /// it can carry packets (up, and its peer or carrier too)
    pub running: bool,
    /// index of the bridge (bond, ...) that it is a port of
    pub master: Option<u32>,
    /// veth: index of the other end, in the namespace of the other end
    pub peer: Option<u32>,
    /// free text of whoever made it, or empty
    pub alias: String,
    /// bridge port: packets may leave by the port they came in
    pub hairpin: Option<bool>,
    /// bridge port: packets pass to and from ports only that are not isolated themselves
    pub isolated: Option<bool>,
    /// it takes packets for any hardware address
    pub promiscuous: bool,
    /// it takes all multicast packets
    pub all_multicast: bool,
    /// length of the transmit queue, in packets
    pub transmit_queue: u32,
}

/// The kinds of device that this project deals with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// an Ethernet bridge
    Bridge,
    /// one end of a veth pair
    Veth,
    /// a VXLAN tunnel end point
    Vxlan(VxlanAttributes),
    /// a tunnel of IPv4 in IPv4
    Ipip(IpipAttributes),
    /// a TUN device (a TAP device is of kind `Other`)
    Tun,
    /// the loopback device
    Loopback,
    /// any other, by the kernel's name of its kind; empty for hardware
    Other(String),
}

/// What to change of a device; nothing where None.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// switch it on or off
    pub up: Option<bool>,
    /// MTU in bytes
    pub mtu: Option<u32>,
    /// hardware address. Also an equal one makes the kernel forget all neighbours on the device.
    pub mac: Option<Mac>,
    /// make it a port of this bridge, or of none
    pub master: Option<Option<u32>>,
    /// free text
    pub alias: Option<String>,
    /// new name (the device has to be down)
    pub name: Option<String>,
    /// whether it gets an IPv6 link-local address when it comes up
    pub link_local: Option<bool>,
    /// take packets for any hardware address
    pub promiscuous: Option<bool>,
    /// take all multicast packets
    pub all_multicast: Option<bool>,
    /// length of the transmit queue, in packets
    pub transmit_queue: Option<u32>,
}

impl Netlink {
    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut body = LinkMessage::default();
        body.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let message = Message::encode(libc::RTM_GETLINK, NLM_F_DUMP, &body);
        self.query(message, || "listing links".into(), decode)
    }

    /// The device called `name`, or None.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut body = LinkMessage::default();
        body.attributes.push(named(name)?);
        self.get(body, || format!("looking up link {name}"))
    }

    /// The device with this index, or None.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        let mut body = LinkMessage::default();
        body.header.index = index;
        self.get(body, || format!("looking up link number {index}"))
    }

    fn get(&mut self, mut body: LinkMessage, operation: impl Fn() -> String) -> Result<Option<Link>> {
        body.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.query(Message::encode(libc::RTM_GETLINK, 0, &body), &operation, |payload| Some(decode(payload))) {
            Ok(mut found) => match found.pop() {
                Some(Some(link)) => Ok(Some(link)),
                _ => Err(Error::new(operation(), Errno::EBADMSG)),
            },
            Err(error) if error.errno == Errno::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes a device.
    pub fn set_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        let operation = || format!("changing link number {index} ({change})");
        let mut body = change.body()?;
        body.header.index = index;
        self.request(Message::encode(libc::RTM_SETLINK, 0, &body), operation)
    }

    /// Creates a device and, in the same system call, changes it by name: the kernel takes an alias, an address
    /// generation mode and port settings for existing devices only. A device that cannot be finished is deleted again.
    pub(super) fn create(
        &mut self,
        name: &str,
        create: Message,
        mut changes: Vec<LinkMessage>,
        operation: impl Fn() -> String,
    ) -> Result<()> {
        let mut messages = vec![create];
        for change in &mut changes {
            change.attributes.push(named(name)?);
            messages.push(Message::encode(libc::RTM_NEWLINK, 0, change));
        }
        let refusals = self.batch(&messages).map_err(|refusal| refused(operation(), refusal))?;
        for (step, refusal) in refusals {
            let change = step.checked_sub(1).and_then(|step| changes.get(step));
            // Where IPv6 is switched off, there is no address generation that could be.
            if refusal.errno == Errno::EAFNOSUPPORT && change.is_some_and(is_about_ipv6) {
                continue;
            }
            if change.is_some() {
                let _ = self.delete_link(name);
            }
            return Err(refused(operation(), refusal));
        }
        Ok(())
    }

    /// The last step of making a tunnel device: it ignores router advertisements, and is up. A device that cannot be finished
    /// is deleted again: half a device would be taken for a whole one by the next look.
    pub(super) fn switch_on(&mut self, name: &str) -> Result<()> {
        let finished = self.mute_and_switch_on(name);
        if finished.is_err() {
            let _ = self.delete_link(name);
        }
        finished
    }

    fn mute_and_switch_on(&mut self, name: &str) -> Result<()> {
        let accept_ra = format!("net/ipv6/conf/{name}/accept_ra");
        {
            let _inside = self.enter()?;
            if sysctl::exists(&accept_ra) {
                sysctl::set(&accept_ra, "0")?;
            }
        }
        let mut up = LinkChange { up: Some(true), ..LinkChange::default() }.body()?;
        up.attributes.push(named(name)?);
        self.request(Message::encode(libc::RTM_SETLINK, 0, &up), || format!("switching on {name}"))
    }

    /// Deletes the device called `name`; false if there is none. This takes some 20 ms, nearly all of it spent waiting
    /// after the device is gone: see [`crate::detached`].
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        let mut body = LinkMessage::default();
        body.attributes.push(named(name)?);
        let message = Message::encode(libc::RTM_DELLINK, 0, &body);
        self.request_unless(message, &[Errno::ENODEV], || format!("deleting link {name}"))
    }

    /// Deletes the device with this index; false if there is none. See [`Netlink::delete_link`].
    pub fn delete_link_by_index(&mut self, index: u32) -> Result<bool> {
        let operation = || format!("deleting link number {index}");
        self.request_unless(delete_link_message(index), &[Errno::ENODEV], operation)
    }
}

impl LinkChange {
    /// The change as a message body that does not say yet which device is meant.
    pub(super) fn body(&self) -> Result<LinkMessage> {
        let mut body = LinkMessage::default();
        let flags = [
            (self.up, LinkFlags::Up),
            (self.promiscuous, LinkFlags::Promisc),
            (self.all_multicast, LinkFlags::Allmulti),
        ];
        for (wanted, flag) in flags {
            if let Some(on) = wanted {
                body.header.change_mask |= flag;
                body.header.flags.set(flag, on);
            }
        }
        let attributes = &mut body.attributes;
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.transmit_queue.map(LinkAttribute::TxQueueLen));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        // Index 0 takes it out of the bridge.
        attributes.extend(self.master.map(|master| LinkAttribute::Controller(master.unwrap_or(0))));
        attributes.extend(self.alias.clone().map(LinkAttribute::IfAlias));
        if let Some(name) = &self.name {
            attributes.push(named(name)?);
        }
        attributes.extend(self.link_local.map(|wanted| {
            let mode = if wanted { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
        }));
        Ok(body)
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            self.up.map(|up| if up { "up".to_owned() } else { "down".to_owned() }),
            self.mtu.map(|mtu| format!("mtu {mtu}")),
            self.mac.map(|mac| format!("address {mac}")),
            self.master.map(|master| master.map_or("no master".to_owned(), |index| format!("master number {index}"))),
            self.alias.as_ref().map(|alias| format!("alias {alias:?}")),
            self.name.as_ref().map(|name| format!("name {name:?}")),
            self.link_local.map(|wanted| format!("link-local address {wanted}")),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        f.write_str(&words.join(", "))
    }
}

/// RTM_DELLINK of the device with this index.
pub(crate) fn delete_link_message(index: u32) -> Message {
    let mut body = LinkMessage::default();
    body.header.index = index;
    Message::encode(libc::RTM_DELLINK, 0, &body)
}

/// A name as an attribute, if it can be one (`dev_valid_name` in the kernel); else the kernel would cut it off at a NUL.
pub(super) fn named(name: &str) -> Result<LinkAttribute> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    if !fits || matches!(name, "." | "..") || name.contains(forbidden) {
        return Err(Error::new(format!("naming a link {name:?}"), Errno::EINVAL)
            .because("a link name has 1 to 15 bytes and no '/', ':' or white space"));
    }
    Ok(LinkAttribute::IfName(name.to_owned()))
}

pub(super) fn decode(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        running: header.flags.contains(LinkFlags::Running),
        master: None,
        peer: None,
        alias: String::new(),
        hairpin: None,
        isolated: None,
        promiscuous: header.flags.contains(LinkFlags::Promisc),
        all_multicast: header.flags.contains(LinkFlags::Allmulti),
        transmit_queue: 0,
    };
    let mut lower = None;
    for attribute in attributes(payload.get(16..)?) {
        match attribute.kind() {
            libc::IFLA_LINKINFO => decode_info(attribute.value(), &mut link),
            libc::IFLA_ADDRESS => link.mac = attribute.value().try_into().ok().map(Mac),
            libc::IFLA_IFNAME
            | libc::IFLA_MTU
            | libc::IFLA_LINK
            | libc::IFLA_MASTER
            | libc::IFLA_TXQLEN
            | libc::IFLA_IFALIAS => match LinkAttribute::parse_with_param(&attribute, AddressFamily::Unspec).ok()? {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => lower = Some(index),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::TxQueueLen(length) => link.transmit_queue = length,
                _ => {}
            },
            _ => {}
        }
    }
    if header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    if link.kind == LinkKind::Veth {
        link.peer = lower;
    }
    Some(link)
}

/// Reads IFLA_LINKINFO, in which the kind comes before the data that depends on it.
fn decode_info(info: &[u8], link: &mut Link) {
    let mut port_kind = Vec::new();
    for attribute in attributes(info) {
        match attribute.kind() {
            libc::IFLA_INFO_KIND => link.kind = kind_called(text(&attribute)),
            libc::IFLA_INFO_DATA => {
                link.kind = match std::mem::replace(&mut link.kind, LinkKind::Loopback) {
                    LinkKind::Vxlan(_) => LinkKind::Vxlan(VxlanAttributes::decode(attribute.value())),
                    LinkKind::Ipip(_) => LinkKind::Ipip(IpipAttributes::decode(attribute.value())),
                    LinkKind::Tun => tun::decode(attribute.value()),
                    other => other,
                };
            }
            libc::IFLA_INFO_SLAVE_KIND => port_kind = text(&attribute).to_vec(),
            libc::IFLA_INFO_SLAVE_DATA if port_kind == b"bridge" => {
                for setting in attributes(attribute.value()) {
                    match InfoBridgePort::parse(&setting) {
                        Ok(InfoBridgePort::HairpinMode(on)) => link.hairpin = Some(on),
                        Ok(InfoBridgePort::Isolated(on)) => link.isolated = Some(on),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_about_ipv6(body: &LinkMessage) -> bool {
    body.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::AfSpecUnspec(_)))
}

fn kind_called(name: &[u8]) -> LinkKind {
    match name {
        b"bridge" => LinkKind::Bridge,
        b"veth" => LinkKind::Veth,
        b"vxlan" => LinkKind::Vxlan(VxlanAttributes::default()),
        b"ipip" => LinkKind::Ipip(IpipAttributes::default()),
        b"tun" => LinkKind::Tun,
        other => LinkKind::Other(String::from_utf8_lossy(other).into_owned()),
    }
}

/// A string attribute without the NUL at its end.
fn text<'a>(attribute: &'a NlaBuffer<&[u8]>) -> &'a [u8] {
    let value = attribute.value();
    value.strip_suffix(&[0]).unwrap_or(value)
}
