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
    loop {
        sleep(LOOK).await;
        let trouble = health.ready().err().unwrap_or_default();
        let stands = !trouble.is_empty() && trouble == seen;
        let is_old = told.as_ref().is_some_and(|(text, at)| *text == trouble && at.elapsed() < AGAIN);
        if stands && !is_old {
            match store.tell(trouble.trim()).await {
                Ok(()) => told = Some((trouble.clone(), Instant::now())),
                Err(StoreError::Invalid(why)) => {
                    tracing::info!("{why}: the log and /readyz alone tell what keeps this node from being ready");
                    return;
                }
                // The API server may be the trouble.
                Err(error) => tracing::debug!("{error}"),
            }
        }
        seen = trouble;
    }
}
