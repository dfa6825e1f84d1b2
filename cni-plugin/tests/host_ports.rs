//! Ports of the node that lead to pods, on the real kernel, beside Debian's reference plugins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

#[path = "host_ports/crowd.rs"]
mod crowd;
#[path = "host_ports/faults.rs"]
mod faults;
#[path = "host_ports/flows.rs"]
mod flows;
mod harness;
#[path = "host_ports/owners.rs"]
mod owners;
#[path = "host_ports/ways.rs"]
mod ways;
#[path = "host_ports/world.rs"]
mod world;
