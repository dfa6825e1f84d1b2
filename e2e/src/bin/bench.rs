//! `make bench`: figures beside the reference plugins. Also its own helper for what runs inside nodes.

use clap::Parser;
use e2e::bench::{Wishes, run};
use e2e::inside::Inside;
use e2e::supervise::supervised;
use std::path::Path;
use std::process::ExitCode;

/// Measures the CNI executable, address allocation, the kernel's programming and the daemon, and prints a table in
/// Markdown. Needs root, and Debian's containernetworking-plugins and iproute2 to compare with.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Command {
    #[command(flatten)]
    wishes: Wishes,
    #[command(subcommand)]
    inside: Option<Inside>,
}

fn main() -> ExitCode {
    let Command { wishes, inside } = Command::parse();
    match inside {
        Some(inside) => inside.main(),
        // In memory: to make a file on a disk costs microseconds or a millisecond, as the file system happens to be.
        None => supervised(Path::new("/dev/shm"), |directory| run(&wishes, directory)),
    }
}
