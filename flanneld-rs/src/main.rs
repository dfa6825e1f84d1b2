//! The node daemon's executable.

use flanneld_rs::options::{Command, Options, Output};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    kernel::memory::keep_little();
    let options = match Options::parse_go_style(std::env::args()) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    log_to_stderr(options.verbosity);
    let outcome = match options.command {
        Some(Command::Uninstall { dry_run, output }) => uninstall(&options, dry_run, output),
        None => run(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    // One thread: a pass over the kernel's tables takes milliseconds, and nothing else is computed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("starting: {error}"))?;
    let outcome = runtime.block_on(flanneld_rs::daemon::run(options));
    // Not waited for: a name server that does not answer would hold up the end by its time-out.
    runtime.shutdown_background();
    outcome
}

fn uninstall(options: &Options, dry_run: bool, output: Output) -> Result<(), String> {
    let report = flanneld_rs::uninstall::uninstall(options, dry_run);
    let text = match output {
        Output::Table => report.to_string(),
        Output::Json => serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n",
    };
    // Whoever does not read to the end wants the node cleaned all the same.
    let _ = std::io::stdout().write_all(text.as_bytes());
    match report.failures() {
        0 => Ok(()),
        failures => Err(format!("{failures} of {} could not be undone; run it again", report.items.len())),
    }
}

fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1 | 2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Libraries speak up at their own warnings only: what they trace of a connection may be secret.
    let filter = Targets::new().with_default(LevelFilter::WARN).with_target("flanneld_rs", level);
    // One tells of every handshake as of a danger.
    let filter = filter.with_target("defguard_boringtun", LevelFilter::OFF);
    let (to, in_colour) = (std::io::stderr, std::io::stderr().is_terminal());
    let lines = tracing_subscriber::fmt::layer().with_writer(to).with_ansi(in_colour).with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}
