//! Pairs of virtual Ethernet devices.

use super::Netlink;
use super::bridge::hairpin;
use super::link::{LinkChange, named};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::netns::Netns;
use crate::{Mac, Result};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use std::os::fd::{AsFd, AsRawFd};

/// A veth pair to be made: the near end here, the peer in another namespace.
#[derive(Clone, Copy, Debug)]
pub struct VethSpec<'a> {
    /// name of the near end
    pub name: &'a str,
    /// free text on the near end that says whose it is
    pub alias: &'a str,
    /// hardware address of the near end; random if None
    pub mac: Option<Mac>,
    /// MTU of both ends in bytes; 1500 if None
    pub mtu: Option<u32>,
    /// index of the bridge that the near end becomes a port of
    pub master: Option<u32>,
    /// hairpin mode of that port; without meaning if there is no master
    pub hairpin: bool,
    /// switch the near end on. The peer stays off: it is configured before it is.
    pub up: bool,
    /// name of the peer
    pub peer_name: &'a str,
    /// hardware address of the peer; random if None
    pub peer_mac: Option<Mac>,
    /// namespace in which the peer is born
    pub peer_netns: &'a Netns,
}

impl Netlink {
    /// Makes a veth pair. The near end gets no IPv6 link-local address. EEXIST if one of the names is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<()> {
        let mut near = end(spec.name, spec.mac, spec.mtu)?;
        near.attributes.extend(spec.master.map(LinkAttribute::Controller));
        // The peer cannot be born switched on (ENOTCONN).
        let mut peer = end(spec.peer_name, spec.peer_mac, spec.mtu)?;
        peer.attributes.push(LinkAttribute::NetNsFd(spec.peer_netns.as_fd().as_raw_fd()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let create = Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &near);
        let mark = LinkChange { alias: Some(spec.alias.to_owned()), ..LinkChange::default() };
        let mute = LinkChange { link_local: Some(false), ..LinkChange::default() };
        let mut steps = vec![mark.body()?, mute.body()?];
        if spec.master.is_some() {
            let mut port = LinkMessage::default();
            port.attributes.push(hairpin(spec.hairpin));
            steps.push(port);
        }
        if spec.up {
            steps.push(LinkChange { up: Some(true), ..LinkChange::default() }.body()?);
        }
        self.create(spec.name, create, steps, || {
            format!("creating veth {} with peer {} in another namespace", spec.name, spec.peer_name)
        })
    }
}

fn end(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Result<LinkMessage> {
    let mut body = LinkMessage::default();
    body.attributes.push(named(name)?);
    body.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    body.attributes.extend(mtu.map(LinkAttribute::Mtu));
    Ok(body)
}
