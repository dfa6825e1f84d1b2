//! The commands that the harness starts itself with: what runs *inside* a node, a pod or a machine.
//!
//! - `run` enters namespaces, asks to be killed with its parent, and becomes the given program.
//! - `pod` makes a network namespace, serves the probes in it, and holds it.
//! - `machine` holds process numbers and mounts of its own, for a container runtime: its shims and containers detach
//!   from whoever started them, but nothing in a process namespace outlives its first process.
//! - `probe` asks a pod, for people who look into a cluster that was kept.

use crate::{Result, probe};
use clap::Subcommand;
use kernel::netns::{Netns, die_with_parent, isolate_mounts};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::sys::wait::wait;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

/// A command that runs inside something.
#[derive(Debug, Subcommand)]
pub enum Inside {
    /// Become a program in the given namespaces, killed with the parent
    Run {
        /// Process number of the parent, to notice that it is gone already
        #[arg(long)]
        parent: Option<u32>,
        /// Path of a network namespace
        #[arg(long)]
        network: Option<PathBuf>,
        /// Process number of a `machine`
        #[arg(long)]
        machine: Option<u32>,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Hold a network namespace and serve the probes in it
    Pod,
    /// Hold a process and a mount namespace
    Machine {
        /// Directories that get an empty file system of their own
        #[arg(long)]
        tmpfs: Vec<PathBuf>,
        /// This is the first process of the machine
        #[arg(long, hide = true)]
        first: bool,
    },
    /// Ask the pod at an address which client address it sees
    Probe {
        /// The pod's address
        address: IpAddr,
    },
}

impl Inside {
    /// Carries the command out; the line `ready` on standard output says when others may rely on it.
    pub fn main(self) -> ExitCode {
        match self.carry_out() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        }
    }

    fn carry_out(self) -> Result<ExitCode> {
        match self {
            Inside::Run { parent, network, machine, command } => run(parent, network.as_deref(), machine, &command),
            Inside::Pod => pod(),
            Inside::Machine { tmpfs, first: false } => machine(&tmpfs),
            Inside::Machine { tmpfs, first: true } => first_process(&tmpfs),
            Inside::Probe { address } => {
                let answer = probe::ask(&Netns::current()?, address, Duration::from_secs(2))?;
                println!("{address} answered in {:?} and saw {}", answer.rtt, answer.seen);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn run(parent: Option<u32>, network: Option<&Path>, machine: Option<u32>, command: &[OsString]) -> Result<ExitCode> {
    prepare(parent)?;
    if let Some(path) = network {
        // For good: this process becomes the program.
        std::mem::forget(Netns::open(path)?.enter()?);
    }
    let (program, args) = command.split_first().ok_or("no program given")?;
    match machine {
        None => Err(format!("{}: {}", program.display(), Command::new(program).args(args).exec()).into()),
        Some(pid) => run_in_machine(pid, command),
    }
}

/// Process numbers change only for children: the program becomes one, which dies with us, and we with our parent.
fn run_in_machine(pid: u32, command: &[OsString]) -> Result<ExitCode> {
    let this = std::env::current_exe()?;
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let (mounts, processes) = (open("mnt")?, open("pid_for_children")?);
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    setns(processes, CloneFlags::CLONE_NEWPID)?;
    let status = Command::new(this).args(["run", "--"]).args(command).status()?;
    Ok(exit_code(status))
}

fn pod() -> Result<ExitCode> {
    prepare(None)?;
    let network = Netns::create()?;
    // For good: the threads of the servers inherit it, and /proc/<pid>/ns/net is what the runtime is told.
    std::mem::forget(network.enter()?);
    probe::serve()?;
    ready()?;
    loop {
        std::thread::park();
    }
}

fn machine(tmpfs: &[PathBuf]) -> Result<ExitCode> {
    prepare(None)?;
    let this = std::env::current_exe()?;
    isolate_mounts()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut first = Command::new(this);
    first.args(["machine", "--first"]);
    for path in tmpfs {
        first.arg("--tmpfs").arg(path);
    }
    Ok(exit_code(first.status()?))
}

fn first_process(tmpfs: &[PathBuf]) -> Result<ExitCode> {
    prepare(None)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
    for path in tmpfs {
        // A directory that nobody has made yet, such as /opt/cni, stays behind empty.
        std::fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    }
    ready()?;
    loop {
        // Orphans become children of the first process. No child at all is the usual case at the start.
        if wait().is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// To be killed with the parent, and with no signal blocked: the mask is inherited from a harness that may wait for them.
fn prepare(parent: Option<u32>) -> Result<()> {
    die_with_parent()?;
    let now = u32::try_from(nix::unistd::getppid().as_raw())?;
    if parent.is_some_and(|pid| pid != now) {
        return Err("the parent is gone".into());
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

fn ready() -> Result<()> {
    let mut output = std::io::stdout();
    output.write_all(b"ready\n")?;
    Ok(output.flush()?)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
