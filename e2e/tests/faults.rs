//! Whatever is done to a node's network behind the daemon's back heals, and nobody else notices. `make bench` measures the
//! same faults, all of them in both families.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Families, Settings, Store};
use e2e::faults::{Fault, Victim, family_name};
use e2e::tools;
use e2e::workdir::WorkDir;
use std::time::Duration;

/// Generous: the machine may be busy with other tests. What is wanted is 2 s.
const LIMIT: Duration = Duration::from_secs(5);
/// A busy machine loses packets now and then; so long it does nothing but by a fault.
const NOTICED: Duration = Duration::from_millis(100);

fn heals(backend: Backend, store: Store, first_v6: bool) {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let work = WorkDir::new().unwrap();
    let settings = Settings::new(backend, store).with(Families::Dual);
    let cluster = Cluster::start(&settings, work.path(), 2, 1).unwrap_or_else(|error| panic!("{error}"));
    let mut victim = Victim::new(cluster, backend);
    let mut v6 = first_v6;
    for fault in Fault::ALL.into_iter().filter(|fault| fault.applies(backend, store)) {
        let family = family_name(v6);
        let outcome = victim.suffer(fault, v6).unwrap_or_else(|error| panic!("{error}"));
        println!("{backend}, {family}, {fault}: healed in {:?}, {}", outcome.healed, outcome.losses());
        assert!(outcome.healed < LIMIT, "{backend}, {family}, {fault}: {outcome:?}");
        if outcome.bare.is_some() {
            let own = outcome.own_outage();
            assert!(own < outcome.healed + NOTICED, "{backend}, {family}, {fault}: not the wire's fault: {outcome:?}");
        }
        if fault.is_of_one_family(backend) {
            let outage = outcome.other.longest_outage;
            assert!(outage < NOTICED, "{backend}, {fault} of {family} harms the other family: {outcome:?}");
        }
        // Each fault strikes one family here, and the other one in the next cluster.
        v6 = !v6;
    }
}

#[test]
fn vxlan_heals() {
    heals(Backend::Vxlan, Store::File, false);
}

#[test]
fn vxlan_heals_in_the_other_family() {
    heals(Backend::Vxlan, Store::Etcd, true);
}

#[test]
fn host_gw_heals() {
    heals(Backend::HostGw, Store::Etcd, false);
}

#[test]
fn host_gw_heals_in_the_other_family() {
    heals(Backend::HostGw, Store::File, true);
}
