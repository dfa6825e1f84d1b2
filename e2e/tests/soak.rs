//! A sample of `make soak`, by the same code.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::soak::crowd::{self, Shape};
use e2e::soak::progress::Progress;
use e2e::soak::walk::{self, Steps};
use e2e::soak::{cycles, seed_of_today};
use e2e::tools;
use e2e::workdir::WorkDir;
use std::time::Duration;

fn place() -> WorkDir {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    WorkDir::new().unwrap()
}

/// Every so many system calls; which ones turns with the time.
#[test]
fn killed_at_many_a_system_call_add_and_del_leave_nothing() {
    let (work, seed) = (place(), seed_of_today());
    let steps = Steps { stride: 61, offset: seed };
    let report = walk::run(steps, work.path(), &mut Progress::none()).unwrap();
    assert_eq!(report.failures, [""; 0], "{steps:?}");
    assert!(report.calls.values().all(|calls| *calls > 100), "{:?}", report.calls);
    assert!(report.steps > 20 && report.kills > report.steps / 2, "{report:?}");
}

#[test]
fn killed_at_random_nothing_is_left() {
    let (work, seed) = (place(), seed_of_today());
    let report = cycles::run(seed, 50, work.path(), &mut Progress::none()).unwrap();
    assert_eq!(report.failures, [""; 0], "seed {seed}");
    assert!(report.kills > 30, "{report:?}");
}

/// What failed is found again by its seed.
#[test]
fn a_seed_does_the_same_again() {
    let seed = seed_of_today();
    let [once, again] =
        [place(), place()].map(|work| cycles::run(seed, 1, work.path(), &mut Progress::none()).unwrap());
    assert_eq!(once, again, "seed {seed}");
}

#[test]
fn a_crowd_with_killed_ones_shares_no_address_and_leaves_nothing() {
    let (work, seed) = (place(), seed_of_today());
    let shape = Shape { parallel: 40, duration: Duration::from_secs(5) };
    let report = crowd::run(seed, shape, work.path(), &mut Progress::none()).unwrap();
    assert_eq!(report.failures, [""; 0], "seed {seed}");
    assert!(report.added > 0 && report.kills > 0, "{report:?}");
}
