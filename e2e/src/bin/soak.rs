//! `make soak`: the long run of crashes, crowds and restarts.

use e2e::soak::run;
use std::process::ExitCode;

const ABOUT: &str = "Kills the CNI executable at every system call and at random, alone and in crowds, and looks for what is \
    left after one DEL or GC; and ends and kills daemons while pods talk. Needs root, iproute2 and nftables.";

fn main() -> ExitCode {
    e2e::entry::main(ABOUT, &std::env::temp_dir(), run)
}
