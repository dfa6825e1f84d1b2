//! `make demo`: a cluster in network namespaces, shown to people.

use e2e::demo::run;
use std::process::ExitCode;

const ABOUT: &str = "Brings up a cluster of nodes in network namespaces, shows that every pod reaches every pod without NAT, \
    breaks things and shows how they heal. Leaves nothing behind.";

fn main() -> ExitCode {
    e2e::entry::main(ABOUT, &std::env::temp_dir(), run)
}
