//! The same conflists, run by the reference's executables and by ours in like namespaces. Whatever differs (results, links,
//! addresses, routes, kernel parameters, files, what reaches what, what DEL leaves) is in `e2e/DIFFERENCES.md` with its
//! reason, and nothing else is.
//!
//! The conflists are data: `conflists/*.json`, one file for each group. The reasons are, too: `reasons.json`.

mod case;
mod facts;
mod look;
mod page;
mod reach;
mod side;

use crate::bench::Whose;
use case::Run;
use facts::Facts;
use page::Compared;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Runs at a time: most of a run is waiting for packets that do not come.
const WORKERS: usize = 16;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Every conflist in every version that it asks for, by both sides.
fn compare_all() -> Vec<Compared> {
    let runs = case::read_all(&file("tests/plugins/conflists"));
    let jobs: Vec<(usize, Whose)> =
        (0..runs.len()).flat_map(|number| [(number, Whose::Ours), (number, Whose::Theirs)]).collect();
    let (jobs, seen) = (Mutex::new(jobs.into_iter()), Mutex::new(BTreeMap::<usize, [Option<Facts>; 2]>::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((number, whose)) = jobs.lock().unwrap().next() else { return };
                    let facts = side::run(whose, &runs[number]);
                    seen.lock().unwrap().entry(number).or_default()[usize::from(whose == Whose::Theirs)] = Some(facts);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    let compared = |(run, facts): (Run, [Option<Facts>; 2])| {
        let [ours, theirs] = facts.map(Option::unwrap);
        Compared { run, ours, theirs }
    };
    runs.into_iter().zip(seen.into_values()).map(compared).collect()
}

/// The page is made anew from what was found and must be as it is in the tree (`make golden` writes it).
#[test]
fn golden_differences() {
    let reasons = fs::read(file("tests/plugins/reasons.json")).unwrap();
    let made = page::render(&compare_all(), &serde_json::from_slice::<Vec<page::Reason>>(&reasons).unwrap());
    let path = file("DIFFERENCES.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &made.text).unwrap();
    }
    assert!(made.unexplained.is_empty(), "no reason is given for:\n{}", made.unexplained.join("\n"));
    assert!(made.idle.is_empty(), "nothing differs any more for the reasons {:?} of reasons.json", made.idle);
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    for (number, (found, wanted)) in made.text.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(found, wanted, "line {} of {}", number + 1, path.display());
    }
    assert_eq!(made.text.lines().count(), wanted.lines().count(), "{} (UPDATE_GOLDEN=1 writes it)", path.display());
}
