//! Many ADDs, or many DELs, at once.

use super::shapes::Shape;
use super::side::Side;
use super::{Pods, Times};
use crate::Result;
use crate::bench::{Figure, Sample, Wishes};
use crate::runner::Attachment;
use std::time::Instant;

/// How many calls of a plain chain are measured for a size of crowd, and of one that takes the reference long.
const CALLS: usize = 192;
const SLOW_CALLS: usize = 64;

/// `size` at once, per operation.
pub(super) fn measure(
    wishes: &Wishes,
    shape: &Shape,
    sides: [&Side; 2],
    pods: &Pods,
    size: usize,
) -> Result<[Figure; 2]> {
    let calls = if shape.rounds < 20 { SLOW_CALLS } else { CALLS };
    let mut times: [Times; 2] = Default::default();
    for round in 0..wishes.times(calls.div_ceil(size)) {
        for (side, times) in sides.into_iter().zip(&mut times) {
            let pods = pods.0.iter().take(size).enumerate();
            let attachment = |(number, pod)| Side::attachment(format!("crowd{size}x{round}x{number}"), number, pod);
            let attachments: Vec<Attachment> = pods.map(attachment).collect();
            at_once(&mut times.add, &attachments, |attachment| side.add(attachment))?;
            at_once(&mut times.del, &attachments, |attachment| side.del(attachment))?;
        }
    }
    let [theirs, ours] = times;
    let figure = |verb: &str, ours: &Sample, theirs: &Sample, wanted| {
        let what = format!("{}: {verb}, {size} at once, per operation", shape.name);
        Figure::time(what, ours.median()).beside(theirs.median()).wanted(wanted)
    };
    Ok([
        figure("ADD", &ours.add, &theirs.add, shape.wanted_add),
        figure("DEL", &ours.del, &theirs.del, shape.wanted_del),
    ])
}

/// Adds the time per operation when all run at once.
fn at_once(
    sample: &mut Sample,
    attachments: &[Attachment],
    work: impl Fn(&Attachment) -> Result<()> + Sync,
) -> Result<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = attachments.iter().map(|attachment| scope.spawn(|| work(attachment))).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    sample.add(start.elapsed() / u32::try_from(attachments.len())?);
    Ok(())
}
