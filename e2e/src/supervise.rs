//! Cleaning up whatever happens: the work is done by a second process, and the first one only waits, so that it can
//! remove what is left when the second ends, crashes, or the user presses Ctrl-C.

use crate::workdir::WorkDir;
use crate::{Result, eventually};
use kernel::netns::{die_with_parent, enter_user_namespace};
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Tells the second process where it may put its files.
const DIRECTORY: &str = "FLANNEL_RS_E2E_DIRECTORY";

/// Runs `work` with a directory in `place` in a second process of this program, started with the same arguments. Its processes die
/// with it, then the directory is removed. Without root, both are root of a user namespace of their own.
///
/// To be called while the process has a single thread.
pub fn supervised(place: &Path, work: impl FnOnce(&Path) -> Result<()>) -> ExitCode {
    let result = match std::env::var_os(DIRECTORY).map(PathBuf::from) {
        Some(directory) => prepare_to_work().and_then(|()| work(&directory)).map(|()| ExitCode::SUCCESS),
        None => supervise(place),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn prepare_to_work() -> Result<()> {
    die_with_parent()?;
    Ok(SigSet::empty().thread_set_mask()?)
}

fn supervise(place: &Path) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        enter_user_namespace()?;
    }
    // Blocked before the child exists, so that none is missed.
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_set_mask()?;
    let directory = WorkDir::within(place)?;
    let mut worker = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(DIRECTORY, directory.path())
        .spawn()?;
    let mut interrupted = None;
    let status = loop {
        match signals.wait()? {
            Signal::SIGCHLD => {}
            signal => {
                interrupted = Some(signal);
                // It may have ended of the same Ctrl-C.
                let _ = worker.kill();
            }
        }
        if let Some(status) = worker.try_wait()? {
            break status;
        }
    };
    // The worker's processes are killed with it, but may still be writing while they end.
    eventually(Duration::from_secs(5), || match fs::remove_dir_all(directory.path()) {
        Err(error) if directory.path().exists() => Err(format!("{}: {error}", directory.path().display()).into()),
        _ => Ok(()),
    })?;
    if let Some(signal) = interrupted {
        // As shells expect it of a program that a signal ended.
        return Ok(ExitCode::from(128u8.saturating_add(u8::try_from(signal as i32)?)));
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
