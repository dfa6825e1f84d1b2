//! The way into the executables for people: each is its own helper for what runs inside nodes, and works under supervision.

use crate::Result;
use crate::inside::Inside;
use crate::supervise::supervised;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use std::path::Path;
use std::process::ExitCode;

#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Command<W: Args> {
    #[command(flatten)]
    wishes: W,
    #[command(subcommand)]
    inside: Option<Inside>,
}

/// Reads the arguments of this process, and does what they say: `run`, with a directory in `place`, or one of the commands
/// of [`Inside`]. `about` is what the help says first.
pub fn main<W: Args>(about: &'static str, place: &Path, run: impl FnOnce(&W, &Path) -> Result<()>) -> ExitCode {
    let matches = Command::<W>::command().about(about).get_matches();
    match Command::from_arg_matches(&matches) {
        Ok(Command { inside: Some(inside), .. }) => inside.main(),
        Ok(Command { wishes, inside: None }) => supervised(place, |directory| run(&wishes, directory)),
        Err(error) => error.exit(),
    }
}
