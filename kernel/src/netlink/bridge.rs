//! Bridges and their ports.

use super::Netlink;
use super::link::{LinkChange, named};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Mac, Result};
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

impl Netlink {
    /// Makes a bridge and switches it on. Its hardware address stays `mac`; without a given one the kernel would change
    /// it with every port that comes and goes. EEXIST if the name is taken.
    pub fn create_bridge(&mut self, name: &str, mac: Mac, mtu: Option<u32>, alias: &str) -> Result<()> {
        let operation = || format!("creating bridge {name}");
        let mut create = LinkMessage::default();
        create.header.flags = LinkFlags::Up;
        create.header.change_mask = LinkFlags::Up;
        create.attributes.push(named(name)?);
        create.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        create.attributes.extend(mtu.map(LinkAttribute::Mtu));
        create.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let create = Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &create);
        let finish = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        self.create(name, create, vec![finish.body()?], operation)
    }

    /// Lets packets leave a bridge port by which they came in, or not.
    pub fn set_hairpin(&mut self, index: u32, on: bool) -> Result<()> {
        self.set_port(index, hairpin(on), || format!("setting hairpin mode of link number {index} to {on}"))
    }

    /// Keeps an isolated bridge port from exchanging packets with other isolated ports, or not.
    pub fn set_isolated(&mut self, index: u32, on: bool) -> Result<()> {
        let setting = port(InfoBridgePort::Isolated(on));
        self.set_port(index, setting, || format!("setting isolation of link number {index} to {on}"))
    }

    fn set_port(&mut self, index: u32, setting: LinkAttribute, operation: impl FnOnce() -> String) -> Result<()> {
        let mut body = LinkMessage::default();
        body.header.index = index;
        body.attributes.push(setting);
        self.request(Message::encode(libc::RTM_NEWLINK, 0, &body), operation)
    }
}

/// The hairpin mode of a bridge port as an attribute.
pub(super) fn hairpin(on: bool) -> LinkAttribute {
    port(InfoBridgePort::HairpinMode(on))
}

fn port(setting: InfoBridgePort) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![setting])),
    ])
}
