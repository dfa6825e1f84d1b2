//! What is left to a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::detached;
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, VxlanLink};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A child of one test would hold the pipe of another for the moment until it has closed everything.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fresh() -> (Netns, Netlink) {
    let netns = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let netlink = Netlink::open_in(&netns).unwrap();
    (netns, netlink)
}

#[test]
fn a_link_is_gone_at_both_ends_on_return_and_its_name_is_free() {
    let _alone = alone();
    let (_, mut host) = fresh();
    let (netns, mut pod) = fresh();
    host.create_bridge("cbr0", Mac::derive("bridge"), None, "").unwrap();
    let master = Some(host.link("cbr0").unwrap().unwrap().index);
    let spec = VethSpec { master, hairpin: true, up: true, ..VethSpec::new("veth0", "eth0", &netns) };
    for _ in 0..20 {
        host.create_veth(&spec).expect("the name is free again");
        let peer = pod.link("eth0").unwrap().unwrap();
        pod.set_link(peer.index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        assert!(detached::delete_link(&mut host, "veth0").unwrap());
        assert_eq!((host.link("veth0").unwrap(), pod.link("eth0").unwrap()), (None, None));
    }
    assert!(!detached::delete_link(&mut host, "veth0").unwrap(), "gone already");
}

#[test]
fn nobody_waits_for_the_child() {
    let _alone = alone();
    let (netns, mut host) = fresh();
    let spec = VethSpec::new("veth0", "veth1", &netns);
    host.create_veth(&spec).unwrap();
    // As a runtime's pipe would be: inherited by whatever this process starts.
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK).unwrap();
    assert!(detached::delete_link(&mut host, "veth0").unwrap());
    drop(writer);
    let mut byte = [0];
    // EAGAIN would mean that somebody still holds the other end.
    assert_eq!(read(&reader, &mut byte), Ok(0));
}

#[test]
fn a_refusal_is_told() {
    let _alone = alone();
    let (_, mut host) = fresh();
    let error = detached::delete_link(&mut host, "lo").unwrap_err();
    assert_eq!(error.errno, Errno::EOPNOTSUPP, "{error}");
    assert!(error.to_string().contains("deleting link lo"), "{error}");
}

#[test]
fn a_vxlan_device_goes_too() {
    let _alone = alone();
    let (_, mut host) = fresh();
    host.create_bridge("up0", Mac::derive("up0"), None, "").unwrap();
    let link = VxlanLink {
        vni: 1,
        port: 8472,
        underlay: "up0".into(),
        local: "192.0.2.1".parse().unwrap(),
        mac: Mac::derive("flannel.1"),
        mtu: 1450,
        learning: false,
        gbp: false,
        tx_checksum: None,
    };
    host.create_vxlan("flannel.1", &link, "").unwrap();
    assert!(detached::delete_link(&mut host, "flannel.1").unwrap());
    assert_eq!(host.link("flannel.1").unwrap(), None);
}

/// What is left to a process of its own is done there, with the sockets of its caller, who does not wait.
#[test]
fn what_nobody_waits_for_is_done_all_the_same() {
    use kernel::conntrack::Conntrack;
    use kernel::nft::{Family, Nft, Table};
    let _alone = alone();
    let namespace = Netns::create().expect("these tests make network namespaces: run them as root");
    let table = |name: &str| Table { family: Family::Ip, name: name.into(), ..Table::default() };
    let sockets = (Nft::open_in(&namespace).unwrap(), Conntrack::open_in(&namespace).unwrap());
    let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
    detached::finish(sockets, |(nft, conntrack)| {
        nft.replace(&table("from-afar")).unwrap();
        assert_eq!(conntrack.count().unwrap(), 0);
        nft.replace(&table("done")).unwrap();
    });
    // The other process has no copy of this: a runtime that waits for the end of a pipe is not kept waiting.
    drop(near);
    assert_eq!(std::io::Read::read(&mut far, &mut [0]).unwrap(), 0);
    let mut nft = Nft::open_in(&namespace).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while !nft.is_intact(&table("done")).unwrap() {
        assert!(Instant::now() < end, "it was never done");
        std::thread::yield_now();
    }
    assert!(nft.is_intact(&table("from-afar")).unwrap());
}
