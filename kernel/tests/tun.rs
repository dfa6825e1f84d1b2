//! TUN devices on the real kernel, in namespaces of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::netlink::{LinkChange, LinkKind, Netlink, RouteSpec};
use kernel::netns::Netns;
use kernel::tun::Tun;
use nix::errno::Errno;
use std::io::ErrorKind;
use std::net::UdpSocket;

/// A namespace with a TUN device that is up and has 192.0.2.0/24 behind it.
fn node() -> (Netns, Netlink, Tun) {
    let netns = Netns::create().unwrap();
    let mut netlink = Netlink::open_in(&netns).unwrap();
    let tun = Tun::open_in(&netns, "flannel0").unwrap();
    configure(&mut netlink);
    (netns, netlink, tun)
}

fn configure(netlink: &mut Netlink) {
    let index = netlink.link("flannel0").unwrap().unwrap().index;
    netlink.add_address(index, "192.0.2.1/32".parse().unwrap()).unwrap();
    netlink.set_link(index, &LinkChange { up: Some(true), mtu: Some(1400), ..LinkChange::default() }).unwrap();
    let route = RouteSpec { dst: "192.0.2.0/24".parse().unwrap(), dev: Some(index), ..RouteSpec::default() };
    netlink.add_route(&route).unwrap();
}

/// Sends a datagram to the far side of the device.
fn send(netns: &Netns, text: &[u8]) {
    netns.run(|| UdpSocket::bind("192.0.2.1:7").unwrap().send_to(text, "192.0.2.9:9").unwrap()).unwrap();
}

fn wait_for_packet(tun: &Tun) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match tun.read(&mut buffer) {
            // The kernel sends router solicitations by itself.
            Ok(length) if buffer[0] >> 4 == 4 => return buffer[..length].to_vec(),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn packets_pass_both_ways() {
    let (netns, _, tun) = node();
    send(&netns, b"hello");
    let mut packet = wait_for_packet(&tun);
    assert!(packet.ends_with(b"hello") && packet.len() == 20 + 8 + 5, "{packet:?}");
    // Turned around: sums do not change when source and destination change places.
    let answer = netns
        .run(|| {
            let socket = UdpSocket::bind("192.0.2.1:7").unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
            packet[12..16].copy_from_slice(&destination);
            packet[16..20].copy_from_slice(&source);
            packet[20..24].copy_from_slice(&[0, 9, 0, 7]);
            assert_eq!(tun.write(&packet).unwrap(), packet.len());
            let mut answer = [0; 10];
            let (length, from) = socket.recv_from(&mut answer).unwrap();
            (answer[..length].to_vec(), from.to_string())
        })
        .unwrap();
    assert_eq!(answer, (b"hello".to_vec(), "192.0.2.9:9".into()));
    assert_eq!(tun.write(&[0; 20]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn the_device_outlives_its_holder_and_is_adopted_as_it_is() {
    let (netns, mut netlink, tun) = node();
    let before = netlink.link("flannel0").unwrap().unwrap();
    assert_eq!(before.kind, LinkKind::Tun);
    let busy = Tun::open_in(&netns, "flannel0").unwrap_err();
    assert_eq!(busy.errno, Errno::EBUSY);
    assert!(busy.to_string().contains("another process holds it"), "{busy}");
    drop(tun);
    let routes = netlink.routes().unwrap();
    assert!(routes.iter().any(|route| route.dst == "192.0.2.0/24".parse().unwrap()), "{routes:?}");
    // Nobody reads: dropped, and no error to the sender.
    send(&netns, b"lost");
    let tun = Tun::open_in(&netns, "flannel0").unwrap();
    let after = netlink.link("flannel0").unwrap().unwrap();
    assert_eq!((after.index, after.mtu, after.up), (before.index, 1400, true));
    send(&netns, b"found");
    assert!(wait_for_packet(&tun).ends_with(b"found"));
}

#[test]
fn a_deleted_device_says_so_for_ever() {
    let (_, mut netlink, tun) = node();
    assert!(tun.is_attached());
    netlink.delete_link("flannel0").unwrap();
    assert!(!tun.is_attached());
    let mut buffer = [0; 100];
    for _ in 0..2 {
        assert_eq!(tun.read(&mut buffer).unwrap_err().raw_os_error(), Some(libc::EBADFD));
        assert_eq!(tun.write(&[0x45; 20]).unwrap_err().raw_os_error(), Some(libc::EBADFD));
    }
}

#[test]
fn no_other_device_is_touched() {
    let netns = Netns::create().unwrap();
    let error = Tun::open_in(&netns, "lo").unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL);
    assert!(error.to_string().contains("none of ours"), "{error}");
    for name in ["", "flannel%d", "a/b", "a:b", "a b", "..", "flannel-too-long"] {
        assert_eq!(Tun::open_in(&netns, name).unwrap_err().errno, Errno::EINVAL, "{name:?}");
    }
    let links = Netlink::open_in(&netns).unwrap().links().unwrap();
    assert!(links.iter().all(|link| link.kind != LinkKind::Tun), "{links:?}");
}
