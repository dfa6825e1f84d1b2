//! The walk: ADD and DEL killed at their every system call, one after the other, by turns followed by DEL and by GC.

use super::cycles::Scenes;
use super::progress::Progress;
use super::scene::Verb;
use super::ways::WAYS;
use crate::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Which of the system calls are taken.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// each so many
    pub stride: u64,
    /// beginning with this one; only what is left of it over `stride` counts
    pub offset: u64,
}

/// What came of the walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// system calls of each verb and way
    pub calls: BTreeMap<String, u64>,
    /// how many of them were taken
    pub steps: u64,
    /// how many of those were the first that a plugin did not make; the others were not met again
    pub kills: u64,
    /// each with the call
    pub failures: Vec<String>,
}

/// Walks through all ways to attach.
pub fn run(steps: Steps, directory: &Path, progress: &mut Progress) -> Result<Report> {
    let (mut report, mut scenes) = (Report::default(), Scenes::within(directory));
    let stride = usize::try_from(steps.stride.max(1))?;
    for way in WAYS {
        for verb in [Verb::Add, Verb::Del] {
            let calls = scenes.of(way)?.calls(verb);
            report.calls.insert(format!("{verb} of {}", way.name()), calls);
            for (turn, at) in (steps.offset % steps.stride.max(1)..calls).step_by(stride).enumerate() {
                report.steps += 1;
                let scene = scenes.of(way)?;
                let cleanup = if turn % 2 == 0 { Verb::Del } else { Verb::Gc };
                let mut place = format!("call {at}");
                let outcome = (|| -> Result<()> {
                    if verb == Verb::Del {
                        scene.succeed(Verb::Add)?;
                    }
                    if let Some(strike) = scene.kill(verb, at)? {
                        place = strike.to_string();
                        report.kills += 1;
                    }
                    scene.succeed(cleanup)?;
                    scene.compare()
                })();
                if let Err(error) = outcome {
                    report.failures.push(format!("{}: {verb} killed {place}, then {cleanup}: {error}", way.name()));
                    scenes.forget(way);
                }
                progress.show(|| {
                    format!("{verb} of {}, call {at} of {calls}, {} failures", way.name(), report.failures.len())
                });
            }
        }
        // The next ADD works, and no address is lost.
        if let Err(error) = scenes.of(way)?.prove_use() {
            report.failures.push(format!("{}, after all kills: {error}", way.name()));
        }
        scenes.forget(way);
    }
    Ok(report)
}
