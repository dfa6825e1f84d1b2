//! VXLAN tunnel end points (RFC 7348).

use super::link::{LinkChange, valid};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use super::{Netlink, attributes};
use crate::{Error, Result, VxlanLink};
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use nix::errno::Errno;
use std::net::IpAddr;

/// What a VXLAN device was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanAttributes {
    /// VXLAN network identifier, 24 bits
    pub vni: u32,
    /// outer UDP destination port
    pub port: u16,
    /// index of the device that the outer packets leave by
    pub underlay: Option<u32>,
    /// outer source address
    pub local: Option<IpAddr>,
    /// it learns remote addresses from received packets
    pub learning: bool,
    /// group based policy extension
    pub gbp: bool,
}

impl VxlanAttributes {
    /// Reads IFLA_INFO_DATA of a VXLAN device.
    pub(super) fn decode(data: &[u8]) -> Self {
        let mut found = VxlanAttributes::default();
        for attribute in attributes(data).filter_map(|attribute| InfoVxlan::parse(&attribute).ok()) {
            match attribute {
                InfoVxlan::Id(vni) => found.vni = vni,
                InfoVxlan::Port(port) => found.port = port,
                InfoVxlan::Link(index) => found.underlay = Some(index),
                InfoVxlan::Local(address) => found.local = Some(address.into()),
                InfoVxlan::Local6(address) => found.local = Some(address.into()),
                InfoVxlan::Learning(on) => found.learning = on,
                InfoVxlan::Gbp => found.gbp = true,
                _ => {}
            }
        }
        found
    }
}

impl Netlink {
    /// Makes a VXLAN device, marks it with `alias` and switches it on. It ignores router advertisements and gets no IPv6
    /// link-local address. EEXIST if the name is taken, or the VNI and port by a device of another name.
    pub fn create_vxlan(&mut self, name: &str, link: &VxlanLink, alias: &str) -> Result<()> {
        let operation = || {
            format!(
                "creating vxlan {name} (vni {}, port {}, local {}, dev {})",
                link.vni, link.port, link.local, link.underlay
            )
        };
        let underlay = self.link(&link.underlay)?.ok_or_else(|| {
            Error::new(operation(), Errno::ENODEV).because(format!("there is no device {}", link.underlay))
        })?;
        let create = new_link(name, link, underlay.index)?;
        let mark = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        let mute = LinkChange { link_local: Some(false), ..LinkChange::default() };
        self.create(name, create, &[mark, mute], operation)?;
        self.switch_on(name)
    }
}

fn new_link(name: &str, link: &VxlanLink, underlay: u32) -> Result<Message> {
    let mut data = vec![
        InfoVxlan::Id(link.vni),
        InfoVxlan::Link(underlay),
        match link.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        },
        InfoVxlan::Learning(link.learning),
        InfoVxlan::Port(link.port),
    ];
    data.extend(link.gbp.then_some(InfoVxlan::Gbp));
    let mut body = LinkMessage::default();
    body.attributes.extend([
        LinkAttribute::IfName(valid(name)?.to_owned()),
        LinkAttribute::Address(link.mac.0.to_vec()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ]);
    Ok(Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body))
}
