//! When the daemon looks at the whole state of the node: regularly, soon after a failure, and when the kernel tells that
//! something changed, but then never so often that it does little else.

use kernel::watch::Wake;
use std::time::Duration;
use tokio::time::Instant;

/// A look that took no longer needs no rest.
const SHORT: Duration = Duration::from_millis(5);
/// After one that took longer, as with thousands of peers, the next one that the kernel asks for waits this many times as long:
/// a node whose network never comes to rest costs a fifth of a processor at most.
const REST: u32 = 4;
/// The first look, which programs everything, does not count for more than this: who breaks something then waits no longer.
const LONGEST_REST: Duration = Duration::from_millis(150);

/// A regular look comes so many times later than a good one took, if that is later than asked for: where all of it is in order,
/// as nearly always, looks at thousands of peers of two families cost a quarter of a hundredth of a processor at most.
const REGULAR: u32 = 400;
/// But not later than this for that reason.
const LONGEST_REGULAR: Duration = Duration::from_secs(10);

/// What is to be looked at, and when.
#[derive(Debug)]
pub(crate) struct Pace {
    /// told, and not yet looked at
    pending: Wake,
    /// the next look whatever happens
    due: Instant,
    /// no look before, unless it is due
    rested: Instant,
}

impl Pace {
    /// Everything is to be looked at now.
    pub(crate) fn new(now: Instant) -> Self {
        Pace { pending: Wake::EVERYTHING, due: now, rested: now }
    }

    /// Something has changed.
    pub(crate) fn wake(&mut self, wake: Wake) {
        self.pending.merge(wake);
    }

    /// When there is something to be looked at.
    pub(crate) fn next(&self) -> Instant {
        if self.pending.is_empty() { self.due } else { self.due.min(self.rested) }
    }

    /// What is to be looked at now, if anything.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Wake> {
        if now >= self.due {
            self.pending = Wake::EVERYTHING;
        } else if self.pending.is_empty() || now < self.rested {
            return None;
        }
        Some(std::mem::take(&mut self.pending))
    }

    /// A look has ended, after which all was well or not; the next one is due after `pause`.
    pub(crate) fn done(&mut self, started: Instant, now: Instant, good: bool, pause: Duration) {
        let taken = now - started;
        let regular = if good { (taken * REGULAR).min(LONGEST_REGULAR) } else { Duration::ZERO };
        self.due = now + pause.max(regular);
        self.rested = if taken > SHORT { now + (taken * REST).min(LONGEST_REST) } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn looks_are_regular_and_on_demand_but_rested() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.take(start), Some(Wake::EVERYTHING));
        assert_eq!(pace.take(start), Some(Wake::EVERYTHING), "due until a look has ended");
        let look = Duration::from_millis(20);
        pace.done(start, start + look, true, 10 * SECOND);
        assert_eq!((pace.take(start + 2 * look), pace.next()), (None, start + look + 10 * SECOND));
        let routes = Wake { routes: true, ..Wake::default() };
        pace.wake(routes);
        assert_eq!(pace.next(), start + 5 * look, "four times as long as the look took");
        assert_eq!(pace.take(start + 4 * look), None);
        assert_eq!(pace.take(start + 5 * look), Some(routes));
        pace.done(start, start + SECOND, false, 2 * LONGEST_REST);
        pace.wake(routes);
        assert_eq!(pace.next(), start + SECOND + LONGEST_REST, "but no longer than that");
        pace.done(start, start + SECOND, false, LONGEST_REST / 2);
        assert_eq!(
            pace.take(start + SECOND + LONGEST_REST / 2),
            Some(Wake::EVERYTHING),
            "what is due waits for no rest"
        );
        pace.done(start, start + SHORT, true, SECOND);
        pace.wake(routes);
        assert_eq!(pace.take(start + SHORT), Some(routes), "a short look needs no rest");
    }

    #[test]
    fn regular_looks_that_take_long_are_rarer() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut due_after = |look: Duration, good| {
            pace.take(start);
            pace.done(start, start + look, good, 5 * SECOND);
            pace.next() - (start + look)
        };
        let look = Duration::from_millis(20);
        assert_eq!((due_after(look / 4, true), due_after(look, true)), (5 * SECOND, 8 * SECOND));
        assert_eq!((due_after(look, false), due_after(10 * look, true)), (5 * SECOND, LONGEST_REGULAR));
    }
}
