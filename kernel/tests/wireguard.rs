//! The kernel's own WireGuard, where there is one. Where there is none, this says so; how it would be spoken to is tested by
//! the messages (`src/wireguard/wire.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use kernel::netlink::Netlink;
use kernel::netns::Netns;
use kernel::wireguard::{Interface, Peer, PublicKey, Remote, SecretKey, WireGuard};
use kernel::{Overlay, Scope, Tunnel, WireGuardLink, apply, diff, observe};
use std::collections::{BTreeMap, BTreeSet};

const DEVICE: &str = "flannel-wg";

#[test]
fn a_device_becomes_what_is_wanted_and_stays_so() {
    let netns = Netns::create().unwrap();
    let Some(mut wireguard) = netns.run(WireGuard::open).unwrap().unwrap() else {
        eprintln!("NOT TESTED: this kernel has no WireGuard (CONFIG_WIREGUARD)");
        return;
    };
    let mut netlink = Netlink::open_in(&netns).unwrap();
    let mut overlay = Overlay::default();
    overlay.links.insert(DEVICE.into(), Tunnel::WireGuard(WireGuardLink { mtu: 1440 }));
    let scope = Scope { devices: BTreeSet::from([DEVICE.into()]), networks: Vec::new(), own: Vec::new() };
    let changes = diff(&observe(&mut netlink, &scope).unwrap(), &overlay);
    assert_eq!(apply(&mut netlink, &changes), []);
    assert_eq!(observe(&mut netlink, &scope).unwrap(), overlay);

    // RFC 7748 section 6.1: Alice, who has Bob for a peer, and many others.
    let private_key: SecretKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
    let public_key: PublicKey = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=".parse().unwrap();
    let peer = |number: u8| Peer {
        remote: Remote {
            preshared_key: number.is_multiple_of(2).then(|| SecretKey::new([number; 32])),
            endpoint: std::net::SocketAddr::new([192, 0, 2, number].into(), 51820),
            keepalive: u16::from(number),
        },
        allowed: [format!("10.5.{number}.0/24").parse().unwrap(), format!("fd00:5:{number}::/64").parse().unwrap()]
            .into(),
    };
    let peers: BTreeMap<_, _> = (1..=200).map(|number| (PublicKey([number; 32]), peer(number))).collect();
    let mut wanted = Interface { private_key, public_key, port: 51820, peers };
    let none = BTreeSet::new();
    assert_eq!(wireguard.ensure(DEVICE, &wanted, &none).unwrap(), 200);
    let found = wireguard.device(DEVICE).unwrap();
    assert_eq!((found.public_key, found.port, found.peers.len()), (Some(public_key), 51820, 200));
    assert_eq!(wireguard.ensure(DEVICE, &wanted, &none).unwrap(), 0, "nothing is left to do");
    // One peer goes, and another gets its addresses.
    let gone = wanted.peers.remove(&PublicKey([7; 32])).unwrap();
    wanted.peers.get_mut(&PublicKey([8; 32])).unwrap().allowed = gone.allowed;
    assert_eq!(wireguard.ensure(DEVICE, &wanted, &none).unwrap(), 2);
    assert_eq!(wireguard.ensure(DEVICE, &wanted, &none).unwrap(), 0);
}
