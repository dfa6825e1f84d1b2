//! What a daemon takes of memory and processors.

use super::{Figure, Wishes};
use crate::Result;
use crate::node::Node;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Which memory is meant (proc_pid_status(5)).
#[derive(Clone, Copy, Debug)]
pub(super) enum Memory {
    /// what is resident
    Now,
    /// the most that ever was
    Most,
}

/// The figures of a daemon that has nothing to do: what it takes of a core, and of memory after that.
pub(super) fn idle(wishes: &Wishes, node: &Node, named: impl Fn(&str) -> String) -> Result<[Figure; 2]> {
    // Everything that comes regularly comes round in this time.
    let time = Duration::from_secs(u64::try_from(wishes.times(60))?);
    let busy = Figure { unit: "%", ..Figure::time(named("of a core, idle"), busy(node, time)?) };
    let resident = megabytes(named("resident memory, idle"), memory(node, Memory::Now)?);
    let most = memory(node, Memory::Most)?;
    Ok([resident.note(format!("{most:.2} MB at most since its start")), busy.below(0.5)])
}

/// A figure in MB, of which less than 25 are wanted.
pub(super) fn megabytes(what: String, megabytes: f64) -> Figure {
    Figure { unit: "MB", ..Figure::time(what, megabytes) }.below(25.0)
}

/// How much of a core the daemon takes in this time, in percent.
pub(super) fn busy(node: &Node, time: Duration) -> Result<f64> {
    let before = processor(node)?;
    std::thread::sleep(time);
    Ok((processor(node)? - before) / time.as_secs_f64() * 100.0)
}

/// The time that the daemon has been on a processor so far, its threads that have ended too, in seconds. (/proc tells it in
/// hundredths, as much as an idle daemon takes in many seconds.)
pub(super) fn processor(node: &Node) -> Result<f64> {
    let pid = node.daemon_pid().ok_or("no daemon runs")?;
    let clock: ClockId = clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?;
    Ok(Duration::from(clock.now()?).as_secs_f64())
}

/// Memory of the daemon in MB (10^6 bytes).
pub(super) fn memory(node: &Node, which: Memory) -> Result<f64> {
    let pid = node.daemon_pid().ok_or("no daemon runs")?;
    let name = match which {
        Memory::Now => "VmRSS:",
        Memory::Most => "VmHWM:",
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}
