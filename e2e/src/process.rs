//! Child processes that cannot outlive us.

use crate::{Result, tools};
use kernel::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A program that is to be started: what, where, and where its output goes.
#[derive(Debug)]
pub struct Program {
    name: String,
    executable: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    network: Option<PathBuf>,
    machine: Option<u32>,
}

impl Program {
    /// `executable` under a `name` for messages and for its log file.
    pub fn new(name: impl Into<String>, executable: impl Into<PathBuf>) -> Self {
        Program {
            name: name.into(),
            executable: executable.into(),
            args: Vec::new(),
            env: Vec::new(),
            network: None,
            machine: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable to those we have.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in this network namespace.
    #[must_use]
    pub fn network(mut self, network: &Netns) -> Self {
        self.network = Some(network.path());
        self
    }

    /// Runs it with the mounts and the process numbers of the process `pid` (see [`crate::inside`], "machine").
    #[must_use]
    pub fn machine(mut self, pid: u32) -> Self {
        self.machine = Some(pid);
        self
    }

    /// Starts it; its output is appended to `<logs>/<name>.log`.
    ///
    /// It is killed by the kernel when the calling *thread* ends, so start it from one that lives as long as it should.
    pub fn start(self, logs: &Path) -> Result<Process> {
        let log = logs.join(format!("{}.log", self.name));
        let open = || File::options().create(true).append(true).open(&log);
        let output = open().map_err(|error| format!("opening {}: {error}", log.display()))?;
        let mut command = Command::new(tools::helper()?);
        command.arg("run").arg("--parent").arg(std::process::id().to_string());
        if let Some(network) = &self.network {
            command.arg("--network").arg(network);
        }
        if let Some(machine) = self.machine {
            command.arg("--machine").arg(machine.to_string());
        }
        command.arg("--").arg(&self.executable).args(&self.args).envs(self.env);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().map_err(|error| format!("starting {}: {error}", self.name))?;
        Ok(Process { name: self.name, child, log })
    }
}

/// A running child; dropping it kills it and waits for it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Takes over a child that was started elsewhere; `log` is where its messages go.
    pub fn adopt(name: impl Into<String>, child: Child, log: PathBuf) -> Self {
        Process { name: name.into(), child, log }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that is gone is an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid())?;
        kill(Pid::from_raw(pid), signal).map_err(|errno| format!("sending {signal} to {}: {errno}", self.name).into())
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits for at most `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for its end for at most `limit`; what it wrote last is in the error.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                return Err(format!("{} still runs after {limit:?}\n{}", self.name, self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Calls `check` until it succeeds, for at most `limit` and only as long as the process runs. Its log is in the error.
    pub fn until<T>(&mut self, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
        let ended = |process: &mut Self| match process.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("{} ended with {status}", process.name)),
            Err(error) => Some(error.to_string()),
        };
        // What ended will never do what it should: a result of its own, so that nobody goes on waiting.
        let outcome = crate::eventually(limit, || match check() {
            Ok(value) => Ok(Ok(value)),
            Err(error) => ended(self).map(Err).ok_or(error),
        });
        let words = |error: String| format!("{error}\n{}", self.last_words()).into();
        outcome.map_err(|error| error.to_string()).and_then(|outcome| outcome).map_err(words)
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default();
        format!("--- {} (last lines) ---\n{}", self.log.display(), last.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
