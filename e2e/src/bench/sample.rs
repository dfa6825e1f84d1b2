//! Measured times.

use crate::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use std::time::{Duration, Instant};

/// Times of the same thing, in milliseconds, sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    sorted: Vec<f64>,
}

impl Sample {
    pub(super) fn add(&mut self, time: Duration) {
        let time = time.as_secs_f64() * 1000.0;
        let place = self.sorted.partition_point(|known| *known < time);
        self.sorted.insert(place, time);
    }

    /// Does `work` and adds the time it took.
    pub(super) fn measure<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        self.add(start.elapsed());
        Ok(result)
    }

    /// Does `work` and adds the time it took, and to `processor` what its child processes, those that were waited for, used of
    /// the processors: a machine that is busy otherwise leaves this alone.
    pub(super) fn measure_both<T>(&mut self, processor: &mut Sample, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = used_by_children()?;
        let result = self.measure(work)?;
        processor.add(used_by_children()?.saturating_sub(before));
        Ok(result)
    }

    pub(super) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The smallest time that `percent` of the times do not exceed; 0 of an empty sample.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Processor time of all child processes that were waited for, and of theirs.
fn used_by_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or_default();
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut sample = Sample::default();
        assert_eq!(sample.median(), 0.0);
        for time in (1..=100).rev() {
            sample.add(Duration::from_millis(time));
        }
        assert_eq!((sample.percentile(1), sample.median(), sample.percentile(99)), (1.0, 50.0, 99.0));
    }
}
