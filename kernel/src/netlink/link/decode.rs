//! Links as the kernel tells of them.

use super::{Link, LinkKind};
use crate::Mac;
use crate::netlink::attribute::attributes;
use crate::netlink::bridge::{IFLA_BRPORT_ISOLATED, IFLA_BRPORT_MODE};
use crate::netlink::ipip::IpipAttributes;
use crate::netlink::tun;
use crate::netlink::vxlan::VxlanAttributes;
use netlink_packet_route::link::{LinkFlags, LinkHeader};

/// A link from the payload of RTM_NEWLINK or RTM_DELLINK.
pub(in crate::netlink) fn decode(payload: &[u8]) -> Option<Link> {
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
        lower: None,
        alias: String::new(),
        hairpin: None,
        isolated: None,
        promiscuous: header.flags.contains(LinkFlags::Promisc),
        all_multicast: header.flags.contains(LinkFlags::Allmulti),
        transmit_queue: 0,
    };
    let (mut lower, mut elsewhere) = (None, false);
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_LINKINFO => decode_info(value, &mut link),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_IFNAME => link.name = text(value)?.to_owned(),
            libc::IFLA_IFALIAS => link.alias = text(value)?.to_owned(),
            libc::IFLA_MTU => link.mtu = number(value)?,
            libc::IFLA_TXQLEN => link.transmit_queue = number(value)?,
            libc::IFLA_LINK => lower = Some(number(value)?),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_MASTER => link.master = Some(number(value)?),
            _ => {}
        }
    }
    if header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    if link.kind == LinkKind::Veth {
        link.peer = lower;
    } else if !elsewhere {
        link.lower = lower;
    }
    Some(link)
}

/// Reads IFLA_LINKINFO, in which the kind comes before the data that depends on it.
fn decode_info(info: &[u8], link: &mut Link) {
    let mut is_port_of_bridge = false;
    for (kind, value) in attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = kind_called(trimmed(value)),
            libc::IFLA_INFO_DATA => {
                link.kind = match std::mem::replace(&mut link.kind, LinkKind::Loopback) {
                    LinkKind::Vxlan(_) => LinkKind::Vxlan(VxlanAttributes::decode(value)),
                    LinkKind::Ipip(_) => LinkKind::Ipip(IpipAttributes::decode(value)),
                    LinkKind::Tun => tun::decode(value),
                    other => other,
                };
            }
            libc::IFLA_INFO_SLAVE_KIND => is_port_of_bridge = trimmed(value) == b"bridge",
            libc::IFLA_INFO_SLAVE_DATA if is_port_of_bridge => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_BRPORT_MODE => link.hairpin = value.first().map(|on| *on != 0),
                        IFLA_BRPORT_ISOLATED => link.isolated = value.first().map(|on| *on != 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn kind_called(name: &[u8]) -> LinkKind {
    match name {
        b"bridge" => LinkKind::Bridge,
        b"veth" => LinkKind::Veth,
        b"vxlan" => LinkKind::Vxlan(VxlanAttributes::default()),
        b"ipip" => LinkKind::Ipip(IpipAttributes::default()),
        b"tun" => LinkKind::Tun,
        b"wireguard" => LinkKind::WireGuard,
        other => LinkKind::Other(String::from_utf8_lossy(other).into_owned()),
    }
}

/// A string attribute without the NUL at its end.
fn trimmed(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(trimmed(value)).ok()
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}
