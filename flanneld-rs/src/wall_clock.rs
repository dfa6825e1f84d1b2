//! The time of day, which in a simulation is each node's own.

use std::time::SystemTime;

/// The time on this node's clock, which may be set at any moment.
pub(crate) fn now() -> SystemTime {
    #[cfg(test)]
    if let Ok(now) = simulated::CLOCK.try_with(simulated::Clock::now) {
        return now;
    }
    SystemTime::now()
}

#[cfg(test)]
pub(crate) mod simulated {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, SystemTime};
    use tokio::time::Instant;

    tokio::task_local! {
        /// The clock of the node whose task this is.
        pub(crate) static CLOCK: Clock;
    }

    /// Goes with the runtime's time, and can be set.
    #[derive(Clone)]
    pub(crate) struct Clock {
        start: Instant,
        at_start: Arc<AtomicU64>,
    }

    impl Clock {
        /// Shows this many seconds of the epoch.
        pub(crate) fn new(seconds: u64) -> Self {
            Clock { start: Instant::now(), at_start: Arc::new(AtomicU64::new(seconds)) }
        }

        pub(crate) fn now(&self) -> SystemTime {
            let at_start = Duration::from_secs(self.at_start.load(Ordering::Relaxed));
            SystemTime::UNIX_EPOCH + at_start + self.start.elapsed()
        }

        /// Sets it forward or back.
        pub(crate) fn jump(&self, seconds: i64) {
            self.at_start.fetch_add(seconds as u64, Ordering::Relaxed);
        }
    }
}
