//! A sample of the restarts of `make soak`, by the same code.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Families};
use e2e::fabric::Fabric;
use e2e::flood::Flood;
use e2e::soak::progress::Progress;
use e2e::soak::restarts;
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};

fn work() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

fn lose_no_packet(backend: Backend, families: Families) {
    let work = work();
    let report = restarts::run((backend, families), 3, work.path(), &mut Progress::none());
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    println!("{report:?}");
    assert_eq!(report.failures, [""; 0]);
    assert!(report.packets.sent > 5000, "{report:?}");
}

#[test]
fn restarts_lose_no_packet_over_vxlan() {
    lose_no_packet(Backend::Vxlan, Families::V4);
}

#[test]
fn restarts_lose_no_packet_over_host_gw() {
    lose_no_packet(Backend::HostGw, Families::V6);
}

/// The flood can fail: it is tried on a wire that is cut for a moment.
#[test]
fn the_flood_notices_losses() {
    let fabric = Fabric::new().unwrap();
    let host = fabric.connect("host", 10).unwrap();
    let ways = ((fabric.network(), e2e::fabric::GATEWAY.into()), (&host.network, host.address.into()));
    let flood = Flood::start(ways.0, ways.1, restarts::PER_SECOND).unwrap();
    flood.wait_for_arrivals(100).unwrap();
    oracle::nft(&host.network, "add table ip cut").unwrap();
    oracle::nft(&host.network, "add chain ip cut input { type filter hook input priority 0 ; policy drop ; }").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    oracle::nft(&host.network, "delete table ip cut").unwrap();
    flood.wait_for_arrivals(100).unwrap();
    let report = flood.stop().unwrap();
    assert!(report.lost > 0 && report.lost < report.sent && report.first_lost > Some(99), "{report:?}");
}
