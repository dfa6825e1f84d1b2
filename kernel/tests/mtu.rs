//! What an underlay of some MTU leaves for the packets inside, in the kernel's own words: `flanneld-rs/tests/mtu.rs` holds the
//! daemon to the same numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::{IpipLink, Mac, VxlanLink};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// A node with an uplink of this MTU and an address of each family.
fn node(mtu: u32) -> (Netlink, Netns) {
    let here = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let far = Netns::create().unwrap();
    let mut netlink = Netlink::open_in(&here).unwrap();
    let spec = VethSpec { mtu: Some(mtu), up: true, ..VethSpec::new("eth0", "eth0", &far) };
    netlink.create_veth(&spec).unwrap();
    let mut there = Netlink::open_in(&far).unwrap();
    let peer = there.link("eth0").unwrap().unwrap().index;
    there.set_link(peer, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap().index;
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        netlink.add_address(eth0, address.parse::<IpNetwork>().unwrap()).unwrap();
    }
    (netlink, far)
}

fn device(netlink: &mut Netlink, name: &str) -> (u32, u32) {
    let link = netlink.link(name).unwrap().unwrap();
    (link.index, link.mtu)
}

/// The largest payload that leaves in one packet, tried from both sides of `guess`.
fn largest_datagram(local: IpAddr, guess: u32) -> u32 {
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).unwrap();
    let (level, option, remote) = match local {
        IpAddr::V4(_) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, "192.0.2.9:9"),
        IpAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, "[2001:db8::9]:9"),
    };
    let never_fragment: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the pointer and the length describe a live c_int, and the descriptor is open.
    let result = unsafe {
        let value = (&raw const never_fragment).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, size_of::<libc::c_int>() as libc::socklen_t)
    };
    assert_eq!(result, 0);
    let fits = |bytes: u32| match socket.send_to(&vec![0; bytes as usize], remote) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => false,
        Err(error) => panic!("{bytes} bytes from {local}: {error}"),
    };
    (guess - 3..guess + 3).filter(|bytes| fits(*bytes)).max().expect("nothing fits")
}

#[test]
fn headers_take_what_they_are_said_to_take() {
    for mtu in [1280, 1420, 1460, 1500, 9001] {
        let (mut netlink, _far) = node(mtu);
        // VXLAN: 50 bytes, and 20 more over IPv6 (RFC 7348 section 5). UDP alone: 28 and 48.
        for (local, vxlan, udp) in [("192.0.2.1", 50, 28), ("2001:db8::1", 70, 48)] {
            let local: IpAddr = local.parse().unwrap();
            let link = VxlanLink {
                vni: 1,
                port: 8472,
                underlay: "eth0".into(),
                local,
                mac: Mac::derive("vtep"),
                mtu: 65_535,
                learning: false,
                gbp: false,
                tx_checksum: None,
            };
            netlink.create_vxlan("flannel.1", &link, "").unwrap();
            let (index, found) = device(&mut netlink, "flannel.1");
            assert_eq!(found, mtu - vxlan, "VXLAN from {local} over {mtu}");
            let more = LinkChange { mtu: Some(found + 1), ..LinkChange::default() };
            assert_eq!(netlink.set_link(index, &more).unwrap_err().errno, Errno::EINVAL, "from {local} over {mtu}");
            netlink.delete_link("flannel.1").unwrap();
            let netns = netlink.netns().try_clone().unwrap();
            let found = netns.run(|| largest_datagram(local, mtu - udp)).unwrap();
            assert_eq!(found, mtu - udp, "UDP from {local} over {mtu}");
        }
        if netlink.supports("ipip").unwrap() {
            let link = IpipLink { local: "192.0.2.1".parse().unwrap(), mtu: mtu - 20 };
            netlink.create_ipip("flannel.ipip", &link, "").unwrap();
            assert_eq!(device(&mut netlink, "flannel.ipip").1, mtu - 20);
        }
    }
}

/// A device that is too small for IPv6 has none, and does not get any back by itself.
#[test]
fn below_1280_bytes_there_is_no_ipv6() {
    let (mut netlink, _far) = node(1500);
    let (index, _) = device(&mut netlink, "eth0");
    let set = |netlink: &mut Netlink, mtu| {
        netlink.set_link(index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() }).unwrap();
    };
    let families = |netlink: &mut Netlink| {
        let found = netlink.addresses_of(index).unwrap();
        let global = found.into_iter().filter(|found| found.ip().to_string() == "2001:db8::1" || found.is_ipv4());
        global.map(|found| found.is_ipv6()).collect::<Vec<_>>()
    };
    set(&mut netlink, 1280);
    assert_eq!(families(&mut netlink), [false, true]);
    for mtu in [1279, 1500] {
        set(&mut netlink, mtu);
        assert_eq!(families(&mut netlink), [false], "{mtu}");
    }
}
