//! WireGuard carried in this process, on the real kernel: two nodes with a wire between them, and everything that may happen
//! to a tunnel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod node;
mod sleep;

use kernel::wireguard::SecretKey;
use kernel::{Overlay, Scope, observe};
use node::{DEVICE, LIMIT, PORT, eventually, identity, pair, passes, pod, underlay, wired};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

#[test]
fn both_families_pass_and_a_lost_device_heals() {
    let (mut one, mut two) = pair();
    for family in [0, 1] {
        eventually("a datagram", || passes(&one, &two, family));
    }
    assert!(one.netlink.delete_link(DEVICE).unwrap());
    one.reconcile();
    eventually("a datagram over the device made anew", || passes(&one, &two, 0));
    two.overlay.links.clear();
    let scope = Scope { devices: BTreeSet::from([DEVICE.into()]), networks: Vec::new(), own: Vec::new() };
    two.overlay = Overlay::default();
    two.reconcile();
    assert_eq!(observe(&mut two.netlink, &scope).unwrap().links, BTreeMap::new());
    two.socket([0, 0, 0, 0], PORT);
}

/// Megabytes, so that packets are cut and merged on their way, also where they are merged wrongly.
#[test]
fn a_stream_arrives_whole() {
    let (one, two) = pair();
    for family in [0, 1] {
        eventually("a datagram", || passes(&one, &two, family));
        let listener = two.netns.run(|| TcpListener::bind((pod(2)[family], 4001))).unwrap().unwrap();
        let data: Vec<u8> = (0..20_000_000u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut sender = one.netns.run(|| TcpStream::connect((pod(2)[family], 4001))).unwrap().unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        let sent = std::thread::spawn(move || {
            sender.write_all(&data).unwrap();
            drop(sender);
            data
        });
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert!(sent.join().unwrap() == received, "{} bytes arrived otherwise than they left", received.len());
    }
}

/// The other end keeps sending on a session that died with the daemon: it must not go on for the 15 s that it takes to doubt.
#[test]
fn a_restarted_node_is_heard_of_at_once() {
    let (one, mut two) = pair();
    eventually("a datagram", || passes(&one, &two, 0));
    let device = two.netlink.link(DEVICE).unwrap().unwrap().index;
    two.restart();
    assert_eq!(two.netlink.link(DEVICE).unwrap().unwrap().index, device, "the device stays");
    let time = eventually("a datagram", || passes(&one, &two, 0));
    assert!(time < Duration::from_secs(10), "{time:?}");
}

#[test]
fn a_new_key_takes_the_place_of_the_old_one() {
    let (mut one, mut two) = pair();
    eventually("a datagram", || passes(&one, &two, 0));
    two.identity = identity(22);
    two.restart();
    assert!(!passes(&one, &two, 0), "the old key must be worth nothing");
    one.overlay.peers.clear();
    one.overlay.allowed.clear();
    one.knows(&two.identity, 2, SocketAddr::new(underlay(2), PORT), None);
    one.reconcile();
    eventually("a datagram", || passes(&one, &two, 0));
    let found = one.tunnels.found(DEVICE).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), [&two.identity.public_key], "one peer for the subnet");
    assert!(found.values().all(|peer| peer.handshake.is_some()));
}

#[test]
fn who_lacks_a_secret_hears_nothing() {
    let secret = |byte| Some(SecretKey::new([byte; 32]));
    // (key of 2 as 1 knows it, pre-shared key of each)
    let cases = [(identity(3), None, None), (identity(2), secret(7), secret(8)), (identity(2), secret(7), None)];
    for (key, ours, theirs) in cases {
        let (mut one, mut two) = wired();
        one.knows(&key, 2, SocketAddr::new(underlay(2), PORT), ours.clone());
        two.knows(&one.identity.clone(), 1, SocketAddr::new(underlay(1), PORT), theirs);
        one.reconcile();
        two.reconcile();
        assert!(!(0..3).any(|_| passes(&one, &two, 0)), "{key:?} {ours:?}");
    }
    let (mut one, mut two) = wired();
    one.knows(&identity(2), 2, SocketAddr::new(underlay(2), PORT), secret(7));
    two.knows(&one.identity.clone(), 1, SocketAddr::new(underlay(1), PORT), secret(7));
    one.reconcile();
    two.reconcile();
    eventually("a datagram under the same secret", || passes(&one, &two, 0));
}

/// Somebody on the path who sends everything twice, and things of his own.
#[test]
fn replayed_and_forged_datagrams_change_nothing() {
    let (mut one, mut two) = wired();
    let relay = two.socket(underlay(2), 5000);
    one.knows(&identity(2), 2, relay.local_addr().unwrap(), None);
    two.knows(&identity(1), 1, SocketAddr::new(underlay(1), PORT), None);
    two.reconcile();
    one.reconcile();
    let forward = std::thread::spawn(move || {
        let (one, two) = (SocketAddr::new(underlay(1), PORT), SocketAddr::new(underlay(2), PORT));
        let mut buffer = [0; 2048];
        let mut quiet = 0;
        while quiet < 10 {
            let Ok((length, from)) = relay.recv_from(&mut buffer) else {
                quiet += 1;
                continue;
            };
            quiet = 0;
            let datagram = &mut buffer[..length];
            let to = if from == one { two } else { one };
            for _ in 0..3 {
                relay.send_to(datagram, to).unwrap();
            }
            datagram[length - 1] ^= 1;
            relay.send_to(datagram, to).unwrap();
            relay.send_to(&datagram[..length / 2], to).unwrap();
            relay.send_to(&[1; 148], to).unwrap();
            relay.send_to(&[4; 1500], to).unwrap();
        }
    });
    let (from, to) = (one.socket(pod(1)[0], 0), two.socket(pod(2)[0], 4000));
    let mut received = Vec::new();
    let mut buffer = [0; 16];
    for number in 0..50u32 {
        from.send_to(&number.to_be_bytes(), SocketAddr::new(pod(2)[0], 4000)).unwrap();
        // The first is on its way while hands are shaken.
        while let Ok((4, _)) = to.recv_from(&mut buffer) {
            received.push(u32::from_be_bytes(*buffer.first_chunk().unwrap()));
            if received.last() == Some(&number) {
                break;
            }
        }
    }
    while let Ok((4, _)) = to.recv_from(&mut buffer) {
        received.push(u32::from_be_bytes(*buffer.first_chunk().unwrap()));
    }
    let different: BTreeSet<_> = received.iter().collect();
    assert_eq!(different.len(), received.len(), "each at most once: {received:?}");
    assert!(received.len() >= 45, "{received:?}");
    forward.join().unwrap();
}

#[test]
fn a_peer_that_moves_is_followed() {
    let (mut one, mut two) = pair();
    eventually("a datagram", || passes(&one, &two, 0));
    let index = two.netlink.link("eth0").unwrap().unwrap().index;
    let network = |number| ipnetwork::IpNetwork::new(underlay(number), 24).unwrap();
    two.netlink.delete_address(index, network(2)).unwrap();
    two.netlink.add_address(index, network(77)).unwrap();
    // What comes from the new place is authentic; from then on answers go there.
    eventually("a datagram from the new place", || {
        let (from, to) = (two.socket(pod(2)[0], 0), one.socket(pod(1)[0], 4000));
        from.send_to(b"hello", SocketAddr::new(pod(1)[0], 4000)).unwrap();
        to.recv_from(&mut [0; 16]).is_ok()
    });
    eventually("a datagram to the new place", || passes(&one, &two, 0));
    let found = one.tunnels.found(DEVICE).unwrap();
    assert_eq!(found[&two.identity.public_key].endpoint, Some(SocketAddr::new(underlay(77), PORT)));
}

/// What can be sent to nobody, or may not be sent by its sender, goes nowhere.
#[test]
fn addresses_of_others_are_not_borrowed() {
    let (mut one, two) = pair();
    eventually("a datagram", || passes(&one, &two, 0));
    let index = one.netlink.link(DEVICE).unwrap().unwrap().index;
    one.netlink.add_address(index, "10.42.9.9/32".parse().unwrap()).unwrap();
    let (from, to) = (one.socket([10, 42, 9, 9], 0), two.socket([0, 0, 0, 0], 4000));
    from.send_to(b"hello", SocketAddr::new(pod(2)[0], 4000)).unwrap();
    assert!(to.recv_from(&mut [0; 16]).is_err(), "node 2 must not take it: 10.42.9.9 is none of node 1's addresses");
}
