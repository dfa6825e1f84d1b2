//! End to end: "nodes" as network namespaces on one switch, the real executables in them, pods that are real processes,
//! and probes that measure what the pods see.
//!
//! Everything here is held by processes and open files only. Each process dies with the one that started it, so that
//! nothing outlives a panic, Ctrl-C or SIGKILL of the demo or of a test.

// Starting, killing and measuring processes is what this crate is for; the product's own crates stay under the rule.
#![allow(clippy::disallowed_methods)]

pub mod api_server;
pub mod bench;
pub mod cluster;
pub mod containerd;
pub mod demo;
pub mod entry;
pub mod etcd;
pub mod fabric;
pub mod faults;
pub mod flood;
pub mod flows;
pub mod image;
pub mod inside;
pub mod kubernetes;
pub mod node;
pub mod oracle;
pub mod pause;
pub mod pod;
pub mod podman;
pub mod probe;
pub mod process;
pub mod runner;
pub mod soak;
pub mod stream;
pub mod supervise;
pub mod table;
pub mod tools;
pub mod wiretap;
pub mod workdir;

/// An error as text for people: the harness never branches on one.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Result of a step of the harness.
pub type Result<T> = std::result::Result<T, Error>;

/// Calls `check` until it returns a value, at most for `limit`, and tells what was missing (`check`'s last error) if it
/// never did. For conditions that nothing announces; the pause between two calls is 2 ms.
pub fn eventually<T>(limit: std::time::Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let start = std::time::Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => return Err(format!("not within {limit:?}: {error}").into()),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    }
}

/// Says on the real standard error that something was not tested here, and why, once in a process. `eprintln!` would be kept
/// for the case that the test fails (it goes where the test runner captures), so that nobody would know.
pub fn not_tested(what: &str) {
    static SAID: std::sync::Mutex<std::collections::BTreeSet<String>> =
        std::sync::Mutex::new(std::collections::BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if said.insert(what.to_owned()) {
        use std::io::Write;
        // Nobody to tell is no failure.
        let _ = writeln!(std::io::stderr(), "\nNOT TESTED: {what}");
    }
}
