//! Sessions in which nothing moves, of which nothing is kept but what must not be forgotten.

use crate::node::{DEVICE, Node, PORT, eventually, identity, pair, passes, pod, underlay, wired};
use flanneld_rs::wireguard::Tunnels;
use kernel::Route;
use kernel::wireguard::{PublicKey, Remote};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// In place of minutes, and more than a loaded machine takes between a handshake and the packet for which it was.
const REST: Duration = Duration::from_secs(3);
/// Bytes and type of a handshake initiation, and of the answer to it.
const INITIATION: (usize, u8) = (148, 1);
const RESPONSE: (usize, u8) = (92, 2);

/// A node whose sessions soon sleep.
fn tired(node: &mut Node) {
    node.tunnels =
        Tunnels::new(node.identity.clone(), BTreeMap::from([(DEVICE.into(), PORT)]), None).resting_after(REST);
    node.reconcile();
}

fn asleep(nodes: [&Node; 2]) {
    eventually("nothing is kept of sessions", || nodes.iter().all(|node| node.tunnels.awake(DEVICE) == 0));
}

fn kind(datagram: &[u8]) -> (usize, u8) {
    (datagram.len(), datagram[0])
}

/// Two nodes whose datagrams go through a third hand, in the network of the second.
fn relayed() -> (Node, Node, UdpSocket) {
    let (mut one, mut two) = wired();
    let relay = two.socket(underlay(2), 5000);
    one.knows(&identity(2), 2, relay.local_addr().unwrap(), None);
    two.knows(&identity(1), 1, relay.local_addr().unwrap(), None);
    tired(&mut two);
    tired(&mut one);
    (one, two, relay)
}

/// Takes a datagram: what it is, and where it wants to go.
fn take(relay: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = relay.recv_from(&mut buffer).ok()?;
    let [one, two] = [1, 2].map(|number| SocketAddr::new(underlay(number), PORT));
    Some((buffer[..length].to_vec(), if from == one { two } else { one }))
}

/// Sends datagrams of this number through the third hand until one arrives. Returns the initiations that went to the second node.
fn reach(relay: &UdpSocket, from: &UdpSocket, to: &UdpSocket, number: u8) -> Vec<Vec<u8>> {
    // What is left of earlier ones.
    for socket in [relay, to] {
        socket.set_nonblocking(true).unwrap();
        while socket.recv_from(&mut [0; 2048]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
    }
    let mut initiations = Vec::new();
    eventually("a datagram", || {
        from.send_to(&[number], SocketAddr::new(pod(2)[0], 4000)).unwrap();
        while let Some((datagram, place)) = take(relay) {
            relay.send_to(&datagram, place).unwrap();
            if kind(&datagram) == INITIATION && place.ip() == underlay(2) {
                initiations.push(datagram);
            }
        }
        let mut buffer = [0];
        std::iter::from_fn(|| to.recv_from(&mut buffer).ok().map(|_| buffer)).any(|arrived| arrived == [number])
    });
    initiations
}

/// A node with so many peers, of which none exists.
fn alone_among(peers: u32) -> Node {
    let mut node = Node::new(1);
    for number in 1..=peers {
        let endpoint = SocketAddr::new(underlay(9), PORT);
        let remote = Remote { preshared_key: None, endpoint, keepalive: 0 };
        node.overlay.peers.insert((DEVICE.into(), key_of(number)), remote);
        let subnet = ipnetwork::IpNetwork::new(pod_of(number, 0), 24).unwrap();
        node.overlay.allowed.insert((DEVICE.into(), subnet), key_of(number));
    }
    let route = Route { via: None, dev: DEVICE.into(), onlink: false };
    node.overlay.routes.insert("10.128.0.0/9".parse().unwrap(), route);
    node
}

fn key_of(number: u32) -> PublicKey {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey(key)
}

fn pod_of(number: u32, host: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes([10, 128, 0, 0]) + (number << 8) + host).into()
}

#[test]
fn thousands_of_peers_that_are_silent_need_no_sessions() {
    const PEERS: u32 = 5000;
    let mut node = alone_among(PEERS);
    node.reconcile();
    assert_eq!(node.tunnels.found(DEVICE).unwrap().len(), PEERS as usize);
    // Several looks at the clock.
    std::thread::sleep(REST);
    assert_eq!(node.tunnels.awake(DEVICE), 0);
    let from = node.socket([0, 0, 0, 0], 0);
    for number in [1, PEERS] {
        from.send_to(b"hello", (pod_of(number, 1), 4000)).unwrap();
    }
    eventually("two sessions", || node.tunnels.awake(DEVICE) == 2);
}

/// Also where one of ten stays, so that no large piece of memory is free.
#[test]
fn what_sessions_had_in_memory_goes_back() {
    const ALONE: &str = "WITHOUT_OTHER_TESTS";
    if std::env::var_os(ALONE).is_none() {
        // Others need memory, too.
        #[allow(clippy::disallowed_methods, reason = "the product starts no process; this test wants one for itself")]
        let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
        itself.args(["--exact", "sleep::what_sessions_had_in_memory_goes_back", "--nocapture"]);
        assert!(itself.env(ALONE, "1").status().unwrap().success());
        return;
    }
    const PEERS: usize = 1000;
    let mut node = alone_among(PEERS as u32);
    node.reconcile();
    let before = resident();
    node.overlay.peers.values_mut().for_each(|peer| peer.keepalive = 3600);
    node.reconcile();
    eventually("a session with each", || node.tunnels.awake(DEVICE) == PEERS);
    let most = resident();
    assert!(most > before + 4096, "{most} KiB after {before} KiB: sessions weigh less than this test thinks");
    node.overlay.peers.values_mut().enumerate().for_each(|(number, peer)| {
        peer.keepalive = if number % 10 == 0 { 3600 } else { 0 };
    });
    node.reconcile();
    let half = before + (most - before) / 2;
    eventually("most of it is free", || {
        std::thread::sleep(Duration::from_millis(50));
        node.reconcile();
        resident() < half
    });
    println!("{before} KiB, with {PEERS} sessions {most} KiB, then {} KiB", resident());
}

/// What this process has in memory, in KiB (proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What is sent while hands are shaken again arrives, too.
#[test]
fn a_session_that_sleeps_wakes_without_loss() {
    let (mut one, mut two) = pair();
    tired(&mut one);
    tired(&mut two);
    for round in 0..2 {
        eventually("a datagram", || passes(&one, &two, 0));
        asleep([&one, &two]);
        let ends = if round == 0 { [(&one, 1), (&two, 2)] } else { [(&two, 2), (&one, 1)] };
        let [(sender, from), (receiver, to)] = ends;
        let (from, receiver) = (sender.socket(pod(from)[0], 0), receiver.socket(pod(to)[0], 4000));
        receiver.set_read_timeout(Some(crate::node::LIMIT)).unwrap();
        for number in 0..100u32 {
            from.send_to(&number.to_be_bytes(), SocketAddr::new(pod(to)[0], 4000)).unwrap();
        }
        let mut buffer = [0; 4];
        // In any order: what was kept does not leave where that does which came later.
        let received: BTreeSet<u32> = (0..100)
            .map(|number| {
                receiver.recv_from(&mut buffer).unwrap_or_else(|error| panic!("datagram {number}: {error}"));
                u32::from_be_bytes(buffer)
            })
            .collect();
        assert_eq!(received, BTreeSet::from_iter(0..100), "round {round}");
    }
}

/// Who has written down how a session began must not be able to begin it again when it is forgotten.
#[test]
fn what_was_said_before_the_sleep_is_no_greeting() {
    let (one, mut two, relay) = relayed();
    let (from, to) = (one.socket(pod(1)[0], 0), two.socket(pod(2)[0], 4000));
    let mut initiations = Vec::new();
    for round in 0..3 {
        let those = reach(&relay, &from, &to, round);
        assert!(!those.is_empty(), "each round begins with a handshake");
        initiations.extend(those);
        asleep([&one, &two]);
    }
    let stranger = two.socket(underlay(2), 5001);
    // The last one, and an older one.
    for initiation in [initiations.last(), initiations.first(), initiations.last()] {
        stranger.send_to(initiation.unwrap(), SocketAddr::new(underlay(2), PORT)).unwrap();
        assert!(stranger.recv_from(&mut [0; 2048]).is_err(), "a replayed initiation was answered");
        assert_eq!(two.tunnels.awake(DEVICE), 0, "a replayed initiation has a session made");
    }
    let found = two.tunnels.found(DEVICE).unwrap();
    assert_eq!(found[&one.identity.public_key].endpoint, Some(relay.local_addr().unwrap()), "nobody else is node 1");
    // It hears who is entitled.
    reach(&relay, &from, &to, 3);
}

/// Both ends wake at once, and their handshakes cross.
#[test]
fn crossing_handshakes_come_to_an_end() {
    let (one, two, relay) = relayed();
    let ends = [(&one, 1), (&two, 2)].map(|(node, number)| node.socket(pod(number)[0], 4000));
    let (mut held, mut initiations, mut answers) = (Some(Vec::new()), 0, 0);
    let mut arrived = [false; 2];
    let mut buffer = [0; 16];
    eventually("a datagram each way", || {
        // Again until both ask for a handshake: what is sent before a new device is quite up is lost.
        for (end, to) in ends.iter().zip([2, 1]).filter(|_| held.is_some()) {
            end.send_to(b"hello", SocketAddr::new(pod(to)[0], 4000)).unwrap();
        }
        while let Some((datagram, to)) = take(&relay) {
            initiations += usize::from(kind(&datagram) == INITIATION);
            answers += usize::from(kind(&datagram) == RESPONSE);
            assert!(initiations < 20, "{initiations} initiations, {answers} answers");
            let Some(first) = &mut held else {
                relay.send_to(&datagram, to).unwrap();
                continue;
            };
            first.push((datagram, to));
            if first.iter().any(|(_, to)| to.ip() == underlay(1)) && first.iter().any(|(_, to)| to.ip() == underlay(2))
            {
                for (datagram, to) in held.take().into_iter().flatten() {
                    relay.send_to(&datagram, to).unwrap();
                }
            }
        }
        for (end, arrived) in ends.iter().zip(&mut arrived) {
            *arrived |= end.recv_from(&mut buffer).is_ok();
        }
        arrived == [true; 2]
    });
}

/// A peer that has moved is where it was last heard, until the next look at all peers: in that one without a session is sought
/// where it says that it is, here as in the kernel, and speaks first or announces its new place.
#[test]
fn a_place_is_remembered_in_the_sleep() {
    let (mut one, mut two) = pair();
    tired(&mut one);
    tired(&mut two);
    let index = two.netlink.link("eth0").unwrap().unwrap().index;
    let network = |number| ipnetwork::IpNetwork::new(underlay(number), 24).unwrap();
    two.netlink.delete_address(index, network(2)).unwrap();
    two.netlink.add_address(index, network(77)).unwrap();
    let speaks = |one: &Node, two: &Node| {
        let (from, to) = (two.socket(pod(2)[0], 0), one.socket(pod(1)[0], 4000));
        from.send_to(b"hello", SocketAddr::new(pod(1)[0], 4000)).unwrap();
        to.recv_from(&mut [0; 16]).is_ok()
    };
    eventually("a datagram from the new place", || speaks(&one, &two));
    asleep([&one, &two]);
    let endpoint = |node: &mut Node| node.tunnels.found(DEVICE).unwrap()[&identity(2).public_key].endpoint;
    assert_eq!(endpoint(&mut one), Some(SocketAddr::new(underlay(77), PORT)));
    eventually("a datagram to the new place", || passes(&one, &two, 0));
    asleep([&one, &two]);
    one.reconcile();
    assert_eq!(endpoint(&mut one), Some(SocketAddr::new(underlay(2), PORT)));
    eventually("a datagram from the new place", || speaks(&one, &two));
    assert_eq!(endpoint(&mut one), Some(SocketAddr::new(underlay(77), PORT)));
}

#[test]
fn who_must_keep_a_session_alive_does_not_sleep() {
    let (mut one, mut two) = wired();
    one.knows(&identity(2), 2, SocketAddr::new(underlay(2), PORT), None);
    two.knows(&identity(1), 1, SocketAddr::new(underlay(1), PORT), None);
    let key: PublicKey = identity(2).public_key;
    one.overlay.peers.get_mut(&(DEVICE.into(), key)).unwrap().keepalive = 1;
    tired(&mut two);
    tired(&mut one);
    eventually("a session without a packet", || one.tunnels.found(DEVICE).unwrap()[&key].handshake.is_some());
    std::thread::sleep(2 * REST);
    assert_eq!(one.tunnels.awake(DEVICE), 1);
    // Set otherwise, it may sleep.
    one.overlay.peers.get_mut(&(DEVICE.into(), key)).unwrap().keepalive = 0;
    one.reconcile();
    asleep([&one, &two]);
}
