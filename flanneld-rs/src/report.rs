//! Tells the cluster what keeps this node from being ready, as events of its Node object: where an operator looks first. It
//! needs a permission that flannel's ClusterRole does not have (create of events); without it the log and `/readyz` say it.

use crate::health::Health;
use crate::store::{KubeStore, Store, StoreError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Trouble is told when it stands at two looks that are so far apart: at a start there is always some.
const LOOK: Duration = Duration::from_secs(5);
/// The same is told again after this time; events are kept for an hour.
const AGAIN: Duration = Duration::from_secs(1200);
/// Rest after the first attempt that failed, and after each of many: an API server in trouble is asked by every node.
const REST: (Duration, Duration) = (LOOK, Duration::from_secs(300));

/// Looks and tells, where there is a cluster to be told; until it is dropped.
pub async fn run(store: &Store, health: &Health) {
    if let Store::Kube(store) = store {
        tell(store, health).await;
    }
    std::future::pending().await
}

/// Ends when the cluster says that we may not.
async fn tell(store: &KubeStore, health: &Health) {
    let (mut seen, mut told): (String, Option<(String, Instant)>) = (String::new(), None);
    let mut failures = 0;
    loop {
        sleep(rest(failures, rand::random_range(1.0..2.0))).await;
        let trouble = health.ready().err().unwrap_or_default();
        let stands = !trouble.is_empty() && trouble == seen;
        let is_old = told.as_ref().is_some_and(|(text, at)| *text == trouble && at.elapsed() < AGAIN);
        if stands && !is_old {
            match store.tell(trouble.trim()).await {
                Ok(()) => (told, failures) = (Some((trouble.clone(), Instant::now())), 0),
                Err(StoreError::Invalid(why)) => {
                    tracing::info!("{why}: the log and /readyz alone tell what keeps this node from being ready");
                    return;
                }
                // The API server may be the trouble.
                Err(error) => {
                    tracing::debug!("{error}");
                    failures = failures.saturating_add(1);
                }
            }
        } else if !stands {
            failures = 0;
        }
        seen = trouble;
    }
}

/// How long to wait for the next look after so many attempts in a row that failed. `jitter`, from 1 to 2, keeps nodes with the
/// same trouble out of step.
fn rest(failures: u32, jitter: f64) -> Duration {
    match failures.checked_sub(1) {
        None => LOOK,
        Some(before) => REST.0.saturating_mul(2_u32.saturating_pow(before)).min(REST.1).mul_f64(jitter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_does_not_listen_is_left_in_peace() {
        let rests: Vec<_> = (0..9).map(|failures| rest(failures, 1.0).as_secs()).collect();
        assert_eq!(rests, [5, 5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(rest(u32::MAX, 2.0).as_secs(), 600);
    }
}
