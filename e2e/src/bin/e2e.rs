//! The helper that tests start nodes, pods and machines with.

use clap::Parser;
use e2e::inside::Inside;
use std::process::ExitCode;

#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    inside: Inside,
}

fn main() -> ExitCode {
    Command::parse().inside.main()
}
