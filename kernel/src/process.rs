//! Processes that are started for us.

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the process that `command` starts killed when the thread that starts it ends, in whatever way, SIGKILL included. What
/// that process has started in turn is not.
pub fn end_with_us(command: &mut Command) {
    let us = getpid();
    // SAFETY: between fork and exec the closure makes plain system calls on integers.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // It may have come to its end before.
            if getppid() == us { Ok(()) } else { Err(Errno::ESRCH.into()) }
        });
    }
}
