//! The command line of the real executable: what only a process of its own can show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Command;

/// Exit status 2 comes from the command line; 1 from the first thing that the daemon does with it.
fn exit_status(environment: &[(&str, &str)]) -> Option<i32> {
    #[allow(clippy::disallowed_methods, reason = "the product starts no process, its tests start the product")]
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_flanneld-rs"));
    daemon.env_clear().envs(environment.iter().copied()).arg("--iface-regex=(");
    daemon.output().unwrap().status.code()
}

#[test]
fn the_environment_is_read_as_go_reads_it() {
    for (name, value) in [
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IP_MASQ", "1"),
        // Not set, whatever its type.
        ("FLANNELD_IP_MASQ", ""),
        ("FLANNELD_PUBLIC_IP", ""),
        ("FLANNELD_HEALTHZ_PORT", ""),
    ] {
        assert_eq!(exit_status(&[(name, value)]), Some(1), "{name}={value}");
    }
    for (name, value) in [("FLANNELD_IP_MASQ", "yes"), ("FLANNELD_PUBLIC_IP", "fish")] {
        assert_eq!(exit_status(&[(name, value)]), Some(2), "{name}={value}");
    }
}
