//! Kills a plugin, or the one of a chain whose turn it is, before a given system call: counted with ptrace(2), so that not
//! one is left out and the same number is the same place again.

use crate::Result;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Output};

/// Most that is written to a plugin before it reads: what a pipe holds (pipe(7)).
const LARGEST_CONFIG: usize = 64 << 10;

/// Where the killer struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strike {
    /// how many system calls had been made
    pub(super) number: u64,
    /// name of the one that was not made any more
    pub(super) name: String,
}

impl std::fmt::Display for Strike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at call {} ({})", self.number, self.name)
    }
}

/// Counts the system calls of the plugins that it is given, from where each reads its configuration (what comes before is
/// the loader's and changes nothing), and kills before one of them.
#[derive(Debug)]
pub(super) struct Killer {
    at: Option<u64>,
    seen: u64,
    struck: Option<Strike>,
}

impl Killer {
    /// Kills before system call number `at`, counted from 0.
    pub(super) fn at(at: u64) -> Self {
        Killer { at: Some(at), seen: 0, struck: None }
    }

    /// Counts, and kills nobody.
    pub(super) fn counting() -> Self {
        Killer { at: None, seen: 0, struck: None }
    }

    /// How many system calls were made.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Where it struck; none if it did not come to that.
    pub(super) fn struck(&self) -> Option<&Strike> {
        self.struck.as_ref()
    }

    /// Sees a plugin to its end, be it early.
    pub(super) fn handle(&mut self, mut child: Child, config: &[u8]) -> Result<Output> {
        if config.len() > LARGEST_CONFIG {
            return Err("a configuration too large for a pipe".into());
        }
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
        ptrace::interrupt(pid)?;
        let ended = match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => {
                // It cannot have read anything so far: it is counted from here in any case.
                let mut input = child.stdin.take().ok_or("no standard input")?;
                input.write_all(config)?;
                drop(input);
                self.trace(pid)?
            }
            ended => ended,
        };
        let mut output = Output { status: status(ended)?, stdout: Vec::new(), stderr: Vec::new() };
        // It is dead and what it said fits a pipe.
        child.stdout.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut output.stdout))?;
        child.stderr.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut output.stderr))?;
        Ok(output)
    }

    /// From a stop outside of any system call to the end.
    fn trace(&mut self, pid: Pid) -> Result<WaitStatus> {
        let (mut inside, mut reading, mut signal) = (false, false, None);
        loop {
            ptrace::syscall(pid, signal.take())?;
            match waitpid(pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(_) => {
                    inside = !inside;
                    if !inside {
                        continue;
                    }
                    reading = reading || current(pid)? == (libc::SYS_read, 0);
                    if !reading {
                        continue;
                    }
                    if self.at == Some(self.seen) && self.struck.is_none() {
                        self.struck = Some(Strike { number: self.seen, name: name(current(pid)?.0) });
                        // A process that is killed on its way into a system call does not make it.
                        kill(pid, Signal::SIGKILL)?;
                        return Ok(waitpid(pid, Some(WaitPidFlag::__WALL))?);
                    }
                    self.seen += 1;
                }
                WaitStatus::Stopped(_, received) => signal = Some(received),
                WaitStatus::PtraceEvent(..) => {}
                ended => return Ok(ended),
            }
        }
    }
}

fn status(ended: WaitStatus) -> Result<ExitStatus> {
    match ended {
        WaitStatus::Exited(_, code) => Ok(ExitStatus::from_raw(code << 8)),
        WaitStatus::Signaled(_, signal, _) => Ok(ExitStatus::from_raw(signal as i32)),
        other => Err(format!("a traced plugin is {other:?}").into()),
    }
}

/// Number and first argument of the system call that a stopped process is about to make (proc_pid_syscall(5)).
fn current(pid: Pid) -> Result<(libc::c_long, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let mut words = text.split_ascii_whitespace();
    let number = words.next().ok_or("an empty /proc/<pid>/syscall")?.parse()?;
    let argument = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    Ok((number, argument.unwrap_or(u64::MAX)))
}

/// What strace calls it, for those that a plugin makes where it matters.
fn name(number: libc::c_long) -> String {
    const KNOWN: [(libc::c_long, &str); 33] = [
        (libc::SYS_bind, "bind"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_close, "close"),
        (libc::SYS_exit_group, "exit_group"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_flock, "flock"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_getsockname, "getsockname"),
        (libc::SYS_getsockopt, "getsockopt"),
        (libc::SYS_linkat, "linkat"),
        (libc::SYS_mkdirat, "mkdirat"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_read, "read"),
        (libc::SYS_readlinkat, "readlinkat"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_renameat, "renameat"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_setns, "setns"),
        (libc::SYS_setsockopt, "setsockopt"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_symlinkat, "symlinkat"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_utimensat, "utimensat"),
        (libc::SYS_unshare, "unshare"),
        (libc::SYS_write, "write"),
        (libc::SYS_munmap, "munmap"),
    ];
    #[cfg(target_arch = "x86_64")]
    const OLD: [(libc::c_long, &str); 7] = [
        (libc::SYS_mkdir, "mkdir"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_readlink, "readlink"),
        (libc::SYS_rename, "rename"),
        (libc::SYS_rmdir, "rmdir"),
        (libc::SYS_symlink, "symlink"),
        (libc::SYS_unlink, "unlink"),
    ];
    // Younger architectures never had them.
    #[cfg(not(target_arch = "x86_64"))]
    const OLD: [(libc::c_long, &str); 0] = [];
    let known = KNOWN.iter().chain(&OLD).find(|(known, _)| *known == number);
    known.map_or_else(|| format!("system call {number}"), |(_, name)| (*name).to_owned())
}
