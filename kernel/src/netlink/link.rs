//! Links: network devices of every kind.

mod decode;

use super::attribute::Attributes;
use super::bridge::{IFLA_BRPORT_ISOLATED, IFLA_BRPORT_MODE};
use super::ipip::IpipAttributes;
use super::socket::{Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use super::vxlan::VxlanAttributes;
use super::{Netlink, refused};
use crate::{Error, Mac, Result, sysctl};
use netlink_packet_core::Emitable;
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use nix::errno::Errno;
use std::fmt;

pub(super) use decode::decode;

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
    /// index of the device that it is on top of (VLAN, macvlan), if that is in the same namespace
    pub lower: Option<u32>,
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
    /// a device of the kernel's WireGuard
    WireGuard,
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
    /// bridge port: packets may leave by the port they came in
    pub hairpin: Option<bool>,
    /// bridge port: packets pass to and from ports only that are not isolated themselves
    pub isolated: Option<bool>,
}

/// linux/if_link.h
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_EUI64: u8 = 0;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

impl Netlink {
    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Body::default().without_statistics().message(libc::RTM_GETLINK, NLM_F_DUMP);
        self.query(message, || "listing links".into(), decode)
    }

    /// The device called `name`, or None.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.get(Body::named(name)?, || format!("looking up link {name}"))
    }

    /// The device with this index, or None.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get(Body::numbered(index), || format!("looking up link number {index}"))
    }

    /// Index of the device called `name`, or None: a twentieth of what [`Netlink::link`] costs, and without waiting for those
    /// who change links (the kernel's RTNL).
    pub fn index_of(&self, name: &str) -> Result<Option<u32>> {
        let name = valid(name)?;
        match self.socket.interface_index(name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(Error::new(format!("looking up link {name}"), errno)),
        }
    }

    fn get(&mut self, body: Body, operation: impl Fn() -> String) -> Result<Option<Link>> {
        let message = body.without_statistics().message(libc::RTM_GETLINK, 0);
        match self.query(message, &operation, |payload| Some(decode(payload))) {
            Ok(mut found) => match found.pop() {
                Some(Some(link)) => Ok(Some(link)),
                _ => Err(Error::new(operation(), Errno::EBADMSG)),
            },
            Err(error) if error.errno == Errno::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel can make devices of this kind; it may load a module to find out.
    pub fn supports(&mut self, kind: &str) -> Result<bool> {
        // Under a name that no device can have: the kernel gets as far as asking the kind.
        let impossible = Body { attributes: Attributes::new().text(libc::IFLA_IFNAME, "/"), ..Body::default() };
        let create = impossible.of_kind(kind, Attributes::new()).message(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        match self.request(create, || format!("looking for devices of the kind {kind}")) {
            Err(error) if error.errno == Errno::EOPNOTSUPP => Ok(false),
            Err(error) if error.errno == Errno::EINVAL => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// Changes a device.
    pub fn set_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        let operation = || format!("changing link number {index} ({change})");
        let body = change.applied_to(Body::numbered(index))?;
        // RTM_SETLINK would leave out the settings of ports.
        self.request(body.message(libc::RTM_NEWLINK, 0), operation)
    }

    /// Creates a device and, in the same system call, changes it by name: the kernel takes an alias, an address
    /// generation mode and port settings for existing devices only. A device that cannot be finished is deleted again.
    pub(super) fn create(
        &mut self,
        name: &str,
        create: Message,
        changes: &[LinkChange],
        operation: impl Fn() -> String,
    ) -> Result<()> {
        let mut messages = vec![create];
        for change in changes {
            messages.push(change.message_to(name)?);
        }
        let refusals = self.batch(&messages).map_err(|refusal| refused(operation(), refusal))?;
        for (step, refusal) in refusals {
            let change = step.checked_sub(1).and_then(|step| changes.get(step));
            // Where IPv6 is switched off, there is no address generation that could be.
            if refusal.errno == Errno::EAFNOSUPPORT && change.is_some_and(|change| change.link_local.is_some()) {
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
            match sysctl::set(&accept_ra, "0") {
                // Without IPv6 there is nothing to ignore. A container's /proc/sys can only be read: whoever looks after the
                // device tells what it lacks.
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EROFS) => {}
                muted => muted?,
            }
        }
        let up = LinkChange { up: Some(true), ..LinkChange::default() }.message_to(name)?;
        self.request(up, || format!("switching on {name}"))
    }

    /// Deletes the device called `name`; false if there is none. This takes some 20 ms, nearly all of it spent waiting
    /// after the device is gone: see [`crate::detached`].
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        let message = Body::named(name)?.message(libc::RTM_DELLINK, 0);
        self.request_unless(message, &[Errno::ENODEV], || format!("deleting link {name}"))
    }

    /// Deletes the device with this index; false if there is none. See [`Netlink::delete_link`].
    pub fn delete_link_by_index(&mut self, index: u32) -> Result<bool> {
        let operation = || format!("deleting link number {index}");
        self.request_unless(delete_link_message(index), &[Errno::ENODEV], operation)
    }
}

impl LinkChange {
    /// The request to change the device called `name`. (RTM_SETLINK would leave out the settings of ports.)
    pub(super) fn message_to(&self, name: &str) -> Result<Message> {
        Ok(self.applied_to(Body::named(name)?)?.message(libc::RTM_NEWLINK, 0))
    }

    /// Has `body`, which says which device is meant, ask for the change.
    pub(super) fn applied_to(&self, mut body: Body) -> Result<Body> {
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
        let mut attributes = body.attributes;
        let numbers = [
            (libc::IFLA_MTU, self.mtu),
            (libc::IFLA_TXQLEN, self.transmit_queue),
            // Index 0 takes it out of the bridge.
            (libc::IFLA_MASTER, self.master.map(|master| master.unwrap_or(0))),
        ];
        for (kind, number) in numbers {
            if let Some(number) = number {
                attributes = attributes.native(kind, number);
            }
        }
        if let Some(mac) = self.mac {
            attributes = attributes.bytes(libc::IFLA_ADDRESS, &mac.0);
        }
        if let Some(alias) = &self.alias {
            attributes = attributes.text(libc::IFLA_IFALIAS, alias);
        }
        if let Some(name) = &self.name {
            attributes = attributes.text(libc::IFLA_IFNAME, valid(name)?);
        }
        if let Some(wanted) = self.link_local {
            let mode = if wanted { IN6_ADDR_GEN_MODE_EUI64 } else { IN6_ADDR_GEN_MODE_NONE };
            let inet6 = Attributes::new().bytes(IFLA_INET6_ADDR_GEN_MODE, &[mode]);
            attributes = attributes.nested(libc::IFLA_AF_SPEC, Attributes::new().nested(libc::AF_INET6 as u16, inet6));
        }
        let port = [(IFLA_BRPORT_MODE, self.hairpin), (IFLA_BRPORT_ISOLATED, self.isolated)];
        let port = port.into_iter().filter_map(|(kind, on)| Some((kind, u8::from(on?))));
        let port = port.fold(Attributes::new(), |port, (kind, on)| port.bytes(kind, &[on]));
        if port.len() > 0 {
            let info = Attributes::new().text(libc::IFLA_INFO_SLAVE_KIND, "bridge");
            attributes = attributes.nested(libc::IFLA_LINKINFO, info.nested(libc::IFLA_INFO_SLAVE_DATA, port));
        }
        Ok(Body { header: body.header, attributes })
    }
}

/// What is said of a link. The message library's own type for this knows every attribute of every kind of device, and is a
/// quarter of a megabyte in whatever uses it.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    pub(super) header: LinkHeader,
    pub(super) attributes: Attributes,
}

impl Body {
    /// About the device called `name`.
    pub(super) fn named(name: &str) -> Result<Self> {
        Ok(Body { attributes: Attributes::new().text(libc::IFLA_IFNAME, valid(name)?), ..Body::default() })
    }

    /// About the device with this index.
    pub(super) fn numbered(index: u32) -> Self {
        let mut body = Body::default();
        body.header.index = index;
        body
    }

    /// Of the kind `kind`, described by `data`.
    pub(super) fn of_kind(self, kind: &str, data: Attributes) -> Self {
        let info = Attributes::new().text(libc::IFLA_INFO_KIND, kind);
        let info = if data.len() > 0 { info.nested(libc::IFLA_INFO_DATA, data) } else { info };
        Body { attributes: self.attributes.nested(libc::IFLA_LINKINFO, info), ..self }
    }

    /// The answer need not count packets.
    fn without_statistics(self) -> Self {
        Body { attributes: self.attributes.native(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32), ..self }
    }

    /// Its wire form.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.header.buffer_len()];
        self.header.emit(&mut bytes);
        bytes.extend_from_slice(self.attributes.as_bytes());
        bytes
    }

    /// A message of it.
    pub(super) fn message(&self, kind: u16, flags: u16) -> Message {
        Message { kind, flags, payload: self.bytes() }
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
            self.hairpin.map(|on| format!("hairpin {on}")),
            self.isolated.map(|on| format!("isolated {on}")),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        f.write_str(&words.join(", "))
    }
}

/// RTM_DELLINK of the device with this index.
pub(crate) fn delete_link_message(index: u32) -> Message {
    Body::numbered(index).message(libc::RTM_DELLINK, 0)
}

/// The name, if it can be one (`dev_valid_name` in the kernel); else the kernel would cut it off at a NUL.
pub(super) fn valid(name: &str) -> Result<&str> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    if !fits || matches!(name, "." | "..") || name.contains(forbidden) {
        return Err(Error::new(format!("naming a link {name:?}"), Errno::EINVAL)
            .because("a link name has 1 to 15 bytes and no '/', ':' or white space"));
    }
    Ok(name)
}
