//! A node with an uplink, and the overlay that it is to have.

use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, Overlay, Route, Scope, Tunnel, VxlanLink, apply, diff, is_intact, observe};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// RTPROT_BOOT, with which Go flannel's routes come.
pub(crate) const BOOT: u8 = 3;
/// RTPROT_KERNEL: routes that come with an address.
pub(crate) const KERNEL: u8 = 2;
/// RT_SCOPE_LINK.
pub(crate) const LINK: u8 = 253;

/// A node with an uplink, alone in the world.
pub(crate) struct Node {
    pub(crate) netlink: Netlink,
    pub(crate) uplink: u32,
    _far: Netns,
}

#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn device(self) -> &'static str {
        match self {
            Family::V4 => "flannel.1",
            Family::V6 => "flannel-v6.1",
        }
    }

    pub(crate) fn local(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    pub(crate) fn remote(self, peer: u16) -> IpAddr {
        let [high, low] = peer.to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, peer).into(),
        }
    }

    /// Peer 0 is the node itself.
    pub(crate) fn subnet(self, peer: u16) -> IpNetwork {
        let [high, low] = peer.to_be_bytes();
        match self {
            Family::V4 => IpNetwork::new(Ipv4Addr::new(10, 64 + high, low, 0).into(), 24).unwrap(),
            Family::V6 => IpNetwork::new(Ipv6Addr::new(0xfd00, 5, peer, 0, 0, 0, 0, 0).into(), 64).unwrap(),
        }
    }
}

pub(crate) fn node() -> Node {
    let netns = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let far = Netns::create().unwrap();
    let mut netlink = Netlink::open_in(&netns).unwrap();
    let spec = VethSpec { mtu: Some(1500), up: true, ..VethSpec::new("eth0", "eth0", &far) };
    netlink.create_veth(&spec).unwrap();
    let mut there = Netlink::open_in(&far).unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let peer = there.link("eth0").unwrap().unwrap().index;
    there.set_link(peer, &up).unwrap();
    let uplink = netlink.link("eth0").unwrap().unwrap().index;
    netlink.add_address(uplink, "192.0.2.1/24".parse().unwrap()).unwrap();
    netlink.add_address(uplink, "2001:db8::1/64".parse().unwrap()).unwrap();
    Node { netlink, uplink, _far: far }
}

pub(crate) fn scope() -> Scope {
    Scope {
        devices: BTreeSet::from(["flannel.1".into(), "flannel-v6.1".into()]),
        networks: vec!["10.64.0.0/10".parse().unwrap(), "fd00:5::/32".parse().unwrap()],
        own: vec![Family::V4.subnet(9), Family::V6.subnet(9)],
    }
}

pub(crate) fn vxlan(family: Family) -> VxlanLink {
    VxlanLink {
        vni: 1,
        port: 8472,
        underlay: "eth0".into(),
        local: family.local(),
        mac: Mac::derive(family.device()),
        mtu: if matches!(family, Family::V4) { 1450 } else { 1430 },
        learning: false,
        gbp: false,
        tx_checksum: Some(matches!(family, Family::V4)),
    }
}

pub(crate) fn desire(overlay: &mut Overlay, family: Family, peers: u16) {
    let device = family.device().to_owned();
    overlay.links.insert(device.clone(), Tunnel::Vxlan(vxlan(family)));
    let own = family.subnet(0).network();
    overlay.addresses.insert((device.clone(), IpNetwork::from(own)));
    for peer in 1..=peers {
        let (subnet, mac) = (family.subnet(peer), Mac::derive(&format!("{device} {peer}")));
        overlay.neighbours.insert((device.clone(), subnet.network()), mac);
        overlay.fdb.insert((device.clone(), mac), family.remote(peer));
        overlay.routes.insert(subnet, Route { via: Some(subnet.network()), dev: device.clone(), onlink: true });
    }
}

pub(crate) fn desired(peers: u16) -> Overlay {
    let mut overlay = Overlay::default();
    desire(&mut overlay, Family::V4, peers);
    desire(&mut overlay, Family::V6, peers);
    overlay
}

/// One pass of the daemon's loop. Afterwards the kernel has what is desired, and a second pass finds nothing to do.
pub(crate) fn reconcile(node: &mut Node, desired: &Overlay) -> usize {
    let changes = diff(&observe(&mut node.netlink, &scope()).unwrap(), desired);
    assert_eq!(is_intact(&mut node.netlink, &scope(), desired).unwrap(), changes.is_empty(), "{changes:?}");
    assert_eq!(apply(&mut node.netlink, &changes), []);
    let after = observe(&mut node.netlink, &scope()).unwrap();
    assert_eq!(diff(&after, desired), []);
    assert!(is_intact(&mut node.netlink, &scope(), desired).unwrap());
    assert_eq!(&after, desired);
    changes.len()
}

pub(crate) fn index(node: &mut Node, name: &str) -> u32 {
    node.netlink.link(name).unwrap().unwrap().index
}
