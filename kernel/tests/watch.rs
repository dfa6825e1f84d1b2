//! Waiting for changes on the real kernel.
#![cfg(feature = "watch")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::Mac;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::nft::{Family, Nft, Table};
use kernel::watch::{Wake, Watch};
use std::future::Future;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(1);
/// Long enough for what is on its way, short enough for a test.
const QUIET: Duration = Duration::from_millis(80);

fn fresh() -> Netns {
    Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace")
}

fn on_one_thread<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// A namespace with lo and the ends one0 and two0 of a cable, all up, and a listener that has nothing left to tell.
async fn calm() -> (Netns, Netlink, u32, Watch) {
    let namespace = fresh();
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    netlink.create_veth(&VethSpec { up: true, ..VethSpec::new("one0", "two0", &namespace) }).unwrap();
    let index = netlink.link("one0").unwrap().unwrap().index;
    for name in ["lo", "two0"] {
        let index = netlink.link(name).unwrap().unwrap().index;
        netlink.set_link(index, &LinkChange { link_local: Some(false), ..LinkChange::default() }).unwrap();
        netlink.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }
    netlink.add_address(index, "192.0.2.1/24".parse().unwrap()).unwrap();
    let mut watch = Watch::open_in(&namespace).unwrap();
    // IPv6 joins groups and makes routes a little later.
    while timeout(QUIET, watch.changed()).await.is_ok() {}
    (namespace, netlink, index, watch)
}

async fn wakes(watch: &mut Watch) -> Wake {
    timeout(SOON, watch.changed()).await.expect("a change wakes within a second").unwrap()
}

async fn stays_quiet(watch: &mut Watch) {
    let wake = timeout(QUIET, watch.changed()).await;
    assert!(wake.is_err(), "nothing changed, yet {wake:?}");
}

#[test]
fn each_kind_of_change_wakes_and_silence_does_not() {
    on_one_thread(async {
        let (namespace, mut netlink, index, mut watch) = calm().await;
        stays_quiet(&mut watch).await;

        netlink.set_link(index, &LinkChange { mtu: Some(1400), ..LinkChange::default() }).unwrap();
        assert!(wakes(&mut watch).await.links);
        netlink.add_address(index, "192.0.2.7/24".parse().unwrap()).unwrap();
        assert!(wakes(&mut watch).await.addresses);
        netlink.add_address(index, "2001:db8::7/64".parse().unwrap()).unwrap();
        assert!(wakes(&mut watch).await.addresses);
        for (dst, via) in [("10.9.0.0/16", "192.0.2.9"), ("fd00:9::/32", "2001:db8::9")] {
            let (dst, via): (_, IpAddr) = (dst.parse().unwrap(), via.parse().unwrap());
            while timeout(QUIET, watch.changed()).await.is_ok() {}
            let route = RouteSpec { dst, via: Some(via), dev: Some(index), ..RouteSpec::default() };
            netlink.add_route(&route).unwrap();
            let only_routes = Wake { routes: true, ..Wake::default() };
            assert_eq!(wakes(&mut watch).await, only_routes);
            netlink.delete_route(&route).unwrap();
            assert_eq!(wakes(&mut watch).await, only_routes);
        }
        let only_neighbours = Wake { neighbours: true, ..Wake::default() };
        let (pod, mac): (IpAddr, Mac) = ("192.0.2.9".parse().unwrap(), "02:00:00:00:00:09".parse().unwrap());
        netlink.set_neighbour(index, pod, mac).unwrap();
        assert_eq!(wakes(&mut watch).await, only_neighbours);
        netlink.delete_neighbour(index, pod).unwrap();
        assert_eq!(wakes(&mut watch).await, only_neighbours);

        let mut nft = Nft::open_in(&namespace).unwrap();
        let only_nftables = Wake { nftables: true, ..Wake::default() };
        nft.replace(&Table { name: "watched".into(), ..Table::default() }).unwrap();
        assert_eq!(wakes(&mut watch).await, only_nftables);
        assert!(nft.delete(Family::Ip, "watched").unwrap());
        assert_eq!(wakes(&mut watch).await, only_nftables);
        stays_quiet(&mut watch).await;

        assert!(netlink.delete_link("one0").unwrap());
        assert!(wakes(&mut watch).await.links);
    });
}

#[test]
fn the_search_for_a_neighbour_is_no_change() {
    on_one_thread(async {
        let (namespace, netlink, index, mut watch) = calm().await;
        let socket = namespace.run(|| UdpSocket::bind("192.0.2.1:0").unwrap()).unwrap();
        socket.send_to(b"who has it?", "192.0.2.77:9").unwrap();
        let mut netlink = netlink;
        let sought: IpAddr = "192.0.2.77".parse().unwrap();
        let entries = netlink.neighbours(Some(index)).unwrap();
        assert!(entries.iter().any(|entry| entry.ip == sought), "the kernel looks for it: {entries:?}");
        stays_quiet(&mut watch).await;
    });
}

#[test]
fn changes_of_other_namespaces_do_not_wake() {
    on_one_thread(async {
        let (_namespace, _netlink, _index, mut watch) = calm().await;
        let (_other, mut elsewhere, index, _watch) = calm().await;
        elsewhere.set_link(index, &LinkChange { mtu: Some(1300), ..LinkChange::default() }).unwrap();
        stays_quiet(&mut watch).await;
    });
}

#[test]
fn a_burst_is_one_wake() {
    on_one_thread(async {
        let (_namespace, mut netlink, index, mut watch) = calm().await;
        for number in 0..50 {
            let dst = format!("10.9.{number}.0/24").parse().unwrap();
            netlink.add_route(&RouteSpec { dst, dev: Some(index), ..RouteSpec::default() }).unwrap();
        }
        assert!(wakes(&mut watch).await.routes);
        stays_quiet(&mut watch).await;
    });
}

#[test]
fn a_change_survives_a_caller_who_gave_up_waiting() {
    on_one_thread(async {
        let (_namespace, mut netlink, index, mut watch) = calm().await;
        netlink.set_link(index, &LinkChange { mtu: Some(1400), ..LinkChange::default() }).unwrap();
        // Seen, but dropped while it settles.
        let gave_up = timeout(Duration::from_millis(3), watch.changed()).await;
        assert!(gave_up.is_err(), "{gave_up:?}");
        assert!(wakes(&mut watch).await.links);
    });
}

#[test]
fn a_flood_of_changes_is_no_error_and_costs_no_memory() {
    on_one_thread(async {
        let (_namespace, mut netlink, index, mut watch) = calm().await;
        let route = |number: u32| RouteSpec {
            dst: format!("10.{}.{}.0/24", number / 250, number % 250).parse().unwrap(),
            dev: Some(index),
            ..RouteSpec::default()
        };
        let before = resident();
        // Nobody reads meanwhile: most notifications are lost.
        for _round in 0..50 {
            (0..1000).for_each(|number| netlink.add_route(&route(number)).unwrap());
            (0..1000).for_each(|number| assert!(netlink.delete_route(&route(number)).unwrap()));
        }
        let wake = wakes(&mut watch).await;
        assert!(wake.routes && wake.nftables, "what was lost may be anything: {wake:?}");
        let mut wakes = 1;
        while timeout(QUIET, watch.changed()).await.is_ok_and(|wake| wake.is_ok()) {
            wakes += 1;
        }
        assert!(wakes < 20, "{wakes} wakes");
        let grown = resident().saturating_sub(before);
        assert!(grown < 4096, "{grown} KiB");
        stays_quiet(&mut watch).await;
        netlink.add_route(&route(1)).unwrap();
        assert!(self::wakes(&mut watch).await.routes);
    });
}

/// Resident memory of this process in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
