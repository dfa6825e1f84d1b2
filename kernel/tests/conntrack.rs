//! Connection tracking on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::conntrack::{Conntrack, Pattern};
use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::Netns;
use kernel::nft::{Action, Chain, ConntrackState, Hook, HookKind, HookPoint, Match, Nft, Protocol, Rule, Table};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A namespace in which flows are tracked: a rule that asks for their state sees to it.
fn tracking() -> Netns {
    let namespace = Netns::create().expect("these tests make network namespaces: run them as root");
    let mut links = Netlink::open_in(&namespace).unwrap();
    links.set_link(1, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let mut nft = Nft::open_in(&namespace).unwrap();
    for family in [kernel::nft::Family::Ip, kernel::nft::Family::Ip6] {
        let states = BTreeSet::from([ConntrackState::New]);
        let rule = Rule { matches: vec![Match::Conntrack(states)], action: Action::Accept, comment: String::new() };
        let hook = Some(Hook::new(HookKind::Filter, HookPoint::Output, 0));
        let chains = vec![Chain { name: "output".into(), hook, rules: vec![rule] }];
        nft.replace(&Table { family, name: "tracking".into(), chains, ..Table::default() }).unwrap();
    }
    namespace
}

fn send(namespace: &Netns, to: IpAddr, port: u16) {
    let _inside = namespace.enter().unwrap();
    let socket = UdpSocket::bind(SocketAddr::new(to, 0)).unwrap();
    socket.send_to(b"!", SocketAddr::new(to, port)).unwrap();
}

fn to_port(ipv4: bool, protocol: Protocol, port: u16) -> Pattern {
    Pattern::ToPort { ipv4, protocol, port }
}

#[test]
fn flows_are_found_by_port_and_forgotten_alone() {
    let namespace = tracking();
    let mut conntrack = Conntrack::open_in(&namespace).unwrap();
    assert_eq!(conntrack.flows(&[to_port(true, Protocol::Udp, 5000)]).unwrap(), []);
    for address in LOOPBACK {
        for port in [5000, 5001, 5000] {
            send(&namespace, address, port);
        }
    }
    for address in LOOPBACK {
        let pattern = to_port(address.is_ipv4(), Protocol::Udp, 5000);
        let found = conntrack.flows(&[pattern]).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        for flow in &found {
            assert_eq!((flow.protocol, flow.original.destination), (17, address));
            assert_eq!((flow.reply.source, flow.reply.source_port), (address, 5000));
            assert_eq!(flow.original.source_port, flow.reply.destination_port);
        }
        assert_eq!(conntrack.flows(&[to_port(address.is_ipv4(), Protocol::Tcp, 5000)]).unwrap(), []);
        // One of the two, and then the other.
        let spared = found[0].original.source_port;
        assert_eq!(conntrack.forget(&[pattern], |flow| flow.original.source_port != spared).unwrap(), 1);
        assert_eq!(conntrack.flows(&[pattern]).unwrap(), found[..1]);
        assert_eq!(conntrack.forget(&[pattern], |_| true).unwrap(), 1);
        assert_eq!(conntrack.forget(&[pattern], |_| true).unwrap(), 0);
        assert_eq!(conntrack.flows(&[to_port(address.is_ipv4(), Protocol::Udp, 5001)]).unwrap().len(), 1);
    }
}

#[test]
fn flows_are_found_by_who_answers_and_several_patterns_at_once() {
    let namespace = tracking();
    let inside = namespace.enter().unwrap();
    let server = TcpListener::bind((LOOPBACK[0], 5002)).unwrap();
    let client = TcpStream::connect((LOOPBACK[0], 5002)).unwrap();
    drop(inside);
    for address in LOOPBACK {
        send(&namespace, address, 5003);
    }
    let mut conntrack = Conntrack::open_in(&namespace).unwrap();
    let by = |address| Pattern::AnsweredBy(address);
    assert_eq!(conntrack.flows(&[by(LOOPBACK[0])]).unwrap().len(), 2);
    assert_eq!(conntrack.flows(&[by(LOOPBACK[1])]).unwrap().len(), 1);
    assert_eq!(conntrack.flows(&[by(IpAddr::from([127, 0, 0, 2]))]).unwrap(), []);
    let all = [by(LOOPBACK[0]), to_port(true, Protocol::Tcp, 5002), by(LOOPBACK[1])];
    assert_eq!(conntrack.forget(&all, |_| true).unwrap(), 3, "each once");
    assert_eq!(conntrack.flows(&all).unwrap(), []);
    drop((server, client));
}

/// So many that they are not listed as a whole any more, and deleted in many batches.
#[test]
fn the_kernel_picks_among_many() {
    let namespace = tracking();
    let inside = namespace.enter().unwrap();
    // A network of addresses to speak from, so that no two flows are one.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for number in 0..21_000u32 {
        let to = IpAddr::from([127, 1, (number / 200) as u8, 1 + (number % 200) as u8]);
        // An unreachable port is reported by a later call.
        while socket.send_to(b"!", SocketAddr::new(to, if number % 10 == 0 { 6000 } else { 6001 })).is_err() {}
    }
    drop(inside);
    let mut conntrack = Conntrack::open_in(&namespace).unwrap();
    let pattern = to_port(true, Protocol::Udp, 6000);
    assert_eq!(conntrack.flows(&[pattern]).unwrap().len(), 2_100);
    let one = Pattern::AnsweredBy(IpAddr::from([127, 1, 0, 2]));
    assert_eq!(conntrack.flows(&[one]).unwrap().len(), 1);
    assert_eq!(conntrack.forget(&[pattern, one], |_| true).unwrap(), 2_101);
    assert_eq!(conntrack.flows(&[to_port(true, Protocol::Udp, 6001)]).unwrap().len(), 18_899);
}
