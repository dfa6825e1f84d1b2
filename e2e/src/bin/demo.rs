//! `make demo`: a cluster in network namespaces, shown to people. Also its own helper for what runs inside the cluster.

use clap::Parser;
use e2e::demo::{Wishes, run};
use e2e::inside::Inside;
use e2e::supervise::supervised;
use std::process::ExitCode;

/// Brings up a cluster of nodes in network namespaces, shows that every pod reaches every pod without NAT, breaks things
/// and shows how they heal. Leaves nothing behind.
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
        None => supervised(&std::env::temp_dir(), |directory| run(&wishes, directory)),
    }
}
