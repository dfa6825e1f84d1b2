//! Pairs of virtual Ethernet devices.

use super::Netlink;
use super::attribute::Attributes;
use super::link::{Body, LinkChange};
use super::socket::{NLM_F_CREATE, NLM_F_EXCL};
use crate::netns::Netns;
use crate::{Mac, Result};
use std::os::fd::{AsFd, AsRawFd};

/// linux/veth.h
const VETH_INFO_PEER: u16 = 1;

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

impl<'a> VethSpec<'a> {
    /// A pair of these names and nothing else of its own; the near end stays off.
    pub fn new(name: &'a str, peer_name: &'a str, peer_netns: &'a Netns) -> Self {
        VethSpec {
            name,
            alias: "",
            mac: None,
            mtu: None,
            master: None,
            hairpin: false,
            up: false,
            peer_name,
            peer_mac: None,
            peer_netns,
        }
    }
}

impl Netlink {
    /// Makes a veth pair. The near end gets no IPv6 link-local address. EEXIST if one of the names is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<()> {
        let near = LinkChange { mac: spec.mac, mtu: spec.mtu, master: spec.master.map(Some), ..LinkChange::default() };
        // The peer cannot be born switched on (ENOTCONN).
        let peer = LinkChange { mac: spec.peer_mac, mtu: spec.mtu, ..LinkChange::default() };
        let mut peer = with_one_queue(peer.applied_to(Body::named(spec.peer_name)?)?);
        let netns = u32::try_from(spec.peer_netns.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        peer.attributes = peer.attributes.native(libc::IFLA_NET_NS_FD, netns);
        let create = with_one_queue(near.applied_to(Body::named(spec.name)?)?)
            .of_kind("veth", Attributes::new().nested_bytes(VETH_INFO_PEER, &peer.bytes()))
            .message(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        let steps = [
            LinkChange { link_local: Some(false), ..LinkChange::default() },
            LinkChange {
                alias: Some(spec.alias.to_owned()),
                hairpin: spec.master.map(|_| spec.hairpin),
                up: spec.up.then_some(true),
                ..LinkChange::default()
            },
        ];
        self.create(spec.name, create, &steps, || {
            format!("creating veth {} with peer {} in another namespace", spec.name, spec.peer_name)
        })
    }
}

/// One queue in each direction, as a veth device has anyhow. Unless told so, the kernel first makes as many as there are
/// processors and then takes away all but one (`veth_init_queues`), for which it waits for all processors, twice. The price:
/// `ethtool -L` cannot raise the number later.
fn with_one_queue(body: Body) -> Body {
    let attributes = body.attributes.native(libc::IFLA_NUM_TX_QUEUES, 1).native(libc::IFLA_NUM_RX_QUEUES, 1);
    Body { attributes, ..body }
}
