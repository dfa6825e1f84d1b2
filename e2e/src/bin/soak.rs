//! `make soak`: the long run of crashes and crowds.

use clap::Parser;
use e2e::soak::{Wishes, run};
use e2e::supervise::supervised;
use std::process::ExitCode;

/// Kills the CNI executable at every system call and at random, alone and in crowds, and looks for what is left after one
/// DEL or GC. Needs root, iproute2 and nftables.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    wishes: Wishes,
}

fn main() -> ExitCode {
    let Command { wishes } = Command::parse();
    supervised(&std::env::temp_dir(), |directory| run(&wishes, directory))
}
