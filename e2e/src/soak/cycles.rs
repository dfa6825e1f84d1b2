//! Random cycles: a way to attach, a verb, a system call at which it is killed, and DEL or GC, all of them drawn from the
//! cycle's own seed.

use super::dice::Dice;
use super::progress::Progress;
use super::scene::{Scene, Verb};
use super::ways::{WAYS, Way};
use crate::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Of so many cycles one tries the node's use afterwards.
const USED: u64 = 8;
/// Most failures that are collected before it is enough.
const ENOUGH: usize = 10;

/// What came of the cycles.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// cycles that were done
    pub cycles: u64,
    /// how many of them killed something; the others took fewer system calls than expected
    pub kills: u64,
    /// kills by way and verb
    pub killed: BTreeMap<String, u64>,
    /// each with the seed that does it again
    pub failures: Vec<String>,
}

/// One scene for each way; one that failed is given up, so that what it left is not blamed on the next.
pub(super) struct Scenes {
    directory: PathBuf,
    made: usize,
    open: BTreeMap<Way, Scene>,
}

impl Scenes {
    pub(super) fn within(directory: &Path) -> Self {
        Scenes { directory: directory.to_owned(), made: 0, open: BTreeMap::new() }
    }

    /// The scene of a way.
    pub(super) fn of(&mut self, way: Way) -> Result<&Scene> {
        if !self.open.contains_key(&way) {
            self.made += 1;
            let scene = Scene::new(way, &self.directory.join(self.made.to_string()))
                .map_err(|error| format!("{}, with nothing killed: {error}", way.name()))?;
            self.open.insert(way, scene);
        }
        Ok(self.open.get(&way).ok_or("a scene")?)
    }

    /// Gives a scene up.
    pub(super) fn forget(&mut self, way: Way) {
        self.open.remove(&way);
    }
}

/// Runs `count` cycles, of which the first has the seed `first` and each that follows the next number.
pub fn run(first: u64, count: u64, directory: &Path, progress: &mut Progress) -> Result<Report> {
    let (mut report, mut scenes) = (Report::default(), Scenes::within(directory));
    for number in 0..count {
        let seed = first.wrapping_add(number);
        let mut dice = Dice::new(seed);
        let way = *dice.pick(&WAYS).ok_or("no way to attach")?;
        let scene = scenes.of(way)?;
        let mut told = Vec::new();
        let last = number + 1 == count;
        let outcome = cycle(scene, &mut dice, last, &mut told);
        report.cycles += 1;
        for (verb, _) in told.iter().filter(|(_, strike)| strike.is_some()) {
            report.kills += 1;
            *report.killed.entry(format!("{} of {}", verb, way.name())).or_default() += 1;
        }
        if let Err(error) = outcome {
            let told: Vec<String> = told.into_iter().filter_map(|(_, strike)| strike).collect();
            report.failures.push(format!(
                "{}: {}: {error}\nagain: make soak ARGS=\"--seed {seed} --cycles 1\"",
                way.name(),
                told.join(", ")
            ));
            scenes.forget(way);
        }
        progress.show(|| {
            format!("cycle {} of {count}, {} kills, {} failures", number + 1, report.kills, report.failures.len())
        });
        if report.failures.len() >= ENOUGH {
            break;
        }
    }
    Ok(report)
}

/// One cycle; `told` gets what was killed where.
fn cycle(scene: &Scene, dice: &mut Dice, last: bool, told: &mut Vec<(Verb, Option<String>)>) -> Result<()> {
    let verb = *dice.pick(&[Verb::Add, Verb::Add, Verb::Del, Verb::Del, Verb::Gc]).ok_or("no verb")?;
    let at = dice.below(scene.calls(verb));
    let cleanup = if dice.one_in(2) { Verb::Del } else { Verb::Gc };
    let again = dice.one_in(4).then(|| dice.below(scene.calls(cleanup)));
    let used = dice.one_in(USED);
    let mut kill = |verb: Verb, at: u64| -> Result<()> {
        told.push((verb, Some(format!("{verb}, to be killed at call {at}"))));
        let strike = scene.kill(verb, at)?.map(|strike| format!("{verb} killed {strike}"));
        told.pop();
        told.push((verb, strike));
        Ok(())
    };
    if verb != Verb::Add {
        scene.succeed(Verb::Add)?;
    }
    kill(verb, at)?;
    if let Some(at) = again {
        kill(cleanup, at)?;
    }
    scene.succeed(cleanup)?;
    scene.compare().map_err(|error| format!("then {cleanup}: {error}"))?;
    if used || last { scene.prove_use() } else { Ok(()) }
}
