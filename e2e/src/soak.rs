//! The long run: plugins that are killed wherever they are, and what they leave, and daemons that come and go. `make test`
//! runs a sample of it.
//!
//! Four parts: the walk kills ADD and DEL at their every system call; the cycles kill at random, with a seed that does each
//! of them again; the crowd does hundreds at once and kills some; the restarts end and kill daemons under a flood of packets.

pub mod crowd;
pub mod cycles;
mod dice;
pub mod ground;
mod killer;
pub mod progress;
pub mod remains;
pub mod restarts;
mod scene;
pub mod walk;
pub mod ways;

use crate::cluster::{Backend, Families};
use crate::{Result, flood};
use progress::Progress;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// What to do. Without `--walk`, `--cycles`, `--seconds` and `--restarts` everything is done; with some of them only those.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Wishes {
    /// Kill ADD and DEL at their every system call
    #[arg(long)]
    pub walk: bool,
    /// This many random cycles of kill and cleanup [all: 10000]
    #[arg(long)]
    pub cycles: Option<u64>,
    /// A crowd for so many seconds [all: 180]
    #[arg(long)]
    pub seconds: Option<u64>,
    /// End so many daemons with SIGTERM, and kill as many, for each backend and family [all: 20]
    #[arg(long)]
    pub restarts: Option<u64>,
    /// How many attachments the crowd makes at once
    #[arg(long, default_value_t = 200)]
    pub parallel: usize,
    /// Seed of the first cycle and of the crowd [default: the time]
    #[arg(long)]
    pub seed: Option<u64>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

/// A way to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// for people
    Text,
    /// for programs
    Json,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// seed of the first cycle and of the crowd
    pub seed: u64,
    /// none if not wished for
    pub walk: Option<walk::Report>,
    /// none if not wished for
    pub cycles: Option<cycles::Report>,
    /// none if not wished for
    pub crowd: Option<crowd::Report>,
    /// empty if not wished for
    pub restarts: Vec<restarts::Report>,
    /// how long it took
    pub seconds: u64,
}

impl Report {
    /// All that failed.
    pub fn failures(&self) -> Vec<&str> {
        let walk = self.walk.iter().flat_map(|report| &report.failures);
        let cycles = self.cycles.iter().flat_map(|report| &report.failures);
        let crowd = self.crowd.iter().flat_map(|report| &report.failures);
        let restarts = self.restarts.iter().flat_map(|report| &report.failures);
        walk.chain(cycles).chain(crowd).chain(restarts).map(String::as_str).collect()
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("seed {}, {} s", self.seed, self.seconds)];
        if let Some(walk) = &self.walk {
            let calls: u64 = walk.calls.values().sum();
            let (steps, kills) = (walk.steps, walk.kills);
            lines.push(format!("walk: {kills} kills at {steps} of {calls} system calls of {} verbs", walk.calls.len()));
        }
        if let Some(cycles) = &self.cycles {
            lines.push(format!("cycles: {}, with {} kills", cycles.cycles, cycles.kills));
        }
        if let Some(crowd) = &self.crowd {
            let crowd::Report { added, deleted, collected, kills, longest_ms, .. } = crowd;
            lines.push(format!(
                "crowd: {added} ADDs, {deleted} DELs and {collected} GCs done, {kills} killed, longest {longest_ms} ms"
            ));
        }
        for restarts::Report { network, terminated, killed, packets, .. } in &self.restarts {
            let flood::Report { sent, lost, per_second, .. } = packets;
            lines.push(format!(
                "restarts: {network}: {terminated} SIGTERM, {killed} SIGKILL, {lost} of {sent} packets lost ({per_second}/s)"
            ));
        }
        lines.extend(self.failures().iter().map(|failure| format!("FAILED {failure}")));
        lines.join("\n")
    }
}

/// A seed that differs from run to run.
pub fn seed_of_today() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

/// Does what is wished with files in `directory`, and prints what came of it. An error if anything failed.
pub fn run(wishes: &Wishes, directory: &Path) -> Result<()> {
    let start = Instant::now();
    let all = !wishes.walk && wishes.cycles.is_none() && wishes.seconds.is_none() && wishes.restarts.is_none();
    let seed = wishes.seed.unwrap_or_else(seed_of_today);
    let mut progress = Progress::on_terminal();
    let mut report = Report { seed, walk: None, cycles: None, crowd: None, restarts: Vec::new(), seconds: 0 };
    if wishes.walk || all {
        let steps = walk::Steps { stride: 1, offset: 0 };
        report.walk = Some(walk::run(steps, &directory.join("walk"), &mut progress)?);
    }
    if let Some(count) = wishes.cycles.or(all.then_some(10_000)) {
        report.cycles = Some(cycles::run(seed, count, &directory.join("cycles"), &mut progress)?);
    }
    if let Some(seconds) = wishes.seconds.or(all.then_some(180)) {
        let shape = crowd::Shape { parallel: wishes.parallel, duration: Duration::from_secs(seconds) };
        report.crowd = Some(crowd::run(seed, shape, &directory.join("crowd"), &mut progress)?);
    }
    if let Some(each) = wishes.restarts.or(all.then_some(20)) {
        for backend in [Backend::Vxlan, Backend::HostGw] {
            for families in [Families::V4, Families::V6] {
                let place = directory.join(format!("restarts-{backend}-{families:?}"));
                report.restarts.push(restarts::run((backend, families), each, &place, &mut progress)?);
            }
        }
    }
    progress.clear();
    report.seconds = start.elapsed().as_secs();
    match wishes.output {
        Output::Text => println!("{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    match report.failures().len() {
        0 => Ok(()),
        failed => Err(format!("{failed} failures").into()),
    }
}
