//! What is wrong right now: named conditions, set and cleared by those who know, and served as /healthz and /readyz.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// A loop that has not completed a pass for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What stands against a condition that was never looked at.
const NOT_YET: &str = "not yet";

/// The parts of readiness. Each is false until it was true once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// this node holds a lease
    Lease,
    /// the list of the other nodes' leases is known
    Peers,
    /// the kernel's tables are as the leases ask for
    Overlay,
    /// the nftables rules are in place
    Firewall,
    /// the subnet file and the conflist are on disk
    Files,
}

impl Condition {
    const ALL: [Condition; 5] =
        [Condition::Lease, Condition::Peers, Condition::Overlay, Condition::Firewall, Condition::Files];
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Condition::Lease => "subnet lease",
            Condition::Peers => "list of peers",
            Condition::Overlay => "overlay",
            Condition::Firewall => "firewall",
            Condition::Files => "files",
        })
    }
}

/// Shared knowledge of the node's health.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<Conditions>>,
}

#[derive(Debug)]
struct Conditions {
    wrong: BTreeMap<Condition, String>,
    notes: BTreeMap<&'static str, String>,
    last_pass: Instant,
}

impl Health {
    /// Nothing is true yet.
    pub fn new() -> Self {
        let wrong = Condition::ALL.iter().map(|condition| (*condition, NOT_YET.to_owned())).collect();
        let state = Conditions { wrong, notes: BTreeMap::new(), last_pass: Instant::now() };
        Health { state: Arc::new(Mutex::new(state)) }
    }

    /// Records a condition, and logs when it changes.
    pub fn set(&self, condition: Condition, state: Result<(), String>) {
        let mut conditions = self.lock();
        match state {
            Ok(()) => {
                if conditions.wrong.remove(&condition).is_some_and(|reason| reason != NOT_YET) {
                    tracing::info!("{condition}: in order again");
                }
            }
            Err(reason) => {
                if conditions.wrong.get(&condition) != Some(&reason) {
                    tracing::warn!("{condition}: {reason}");
                    conditions.wrong.insert(condition, reason);
                }
            }
        }
    }

    /// Records something that people should know but that does not make the node unready; empty text clears it.
    pub fn note(&self, what: &'static str, text: String) {
        let mut conditions = self.lock();
        if text.is_empty() {
            if conditions.notes.remove(what).is_some() {
                tracing::info!("{what}: in order again");
            }
        } else if conditions.notes.get(what) != Some(&text) {
            tracing::warn!("{what}: {text}");
            conditions.notes.insert(what, text);
        }
    }

    /// A pass of the main loop was completed.
    pub fn beat(&self) {
        self.lock().last_pass = Instant::now();
    }

    /// Whether pods can be attached and reached, with the reasons against.
    pub fn ready(&self) -> Result<(), String> {
        let conditions = self.lock();
        if conditions.wrong.is_empty() {
            return Ok(());
        }
        Err(conditions.wrong.iter().map(|(condition, reason)| format!("{condition}: {reason}\n")).collect())
    }

    /// Whether the daemon is alive. A broken store or network is no reason to restart it.
    fn alive(&self) -> Result<(), String> {
        let silent = self.lock().last_pass.elapsed();
        if silent < STUCK { Ok(()) } else { Err(format!("the main loop has been silent for {} s\n", silent.as_secs())) }
    }

    /// What people should know, a line each.
    pub fn notes(&self) -> String {
        self.lock().notes.iter().map(|(what, text)| format!("{what}: {text}\n")).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Conditions> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the address on which health is to be served.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
        TcpListener::bind(address)
            .await
            .map_err(|error| format!("listening on {address} for /healthz: {error} (is --healthz-port taken?)"))
    }

    /// Serves /healthz and /readyz for ever.
    pub async fn serve(self, listener: TcpListener) {
        let answer = |outcome: Result<(), String>, health: &Health| match outcome {
            Ok(()) => (StatusCode::OK, format!("ok\n{}", health.notes())),
            Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons + &health.notes()),
        };
        let router = axum::Router::new()
            .route("/healthz", get(move |State(health): State<Health>| async move { answer(health.alive(), &health) }))
            .route("/readyz", get(move |State(health): State<Health>| async move { answer(health.ready(), &health) }))
            .with_state(self);
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("serving /healthz: {error}");
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_everything_is_and_not_a_moment_longer() {
        let health = Health::new();
        assert!(health.ready().is_err());
        for condition in Condition::ALL {
            health.set(condition, Ok(()));
        }
        assert_eq!(health.ready(), Ok(()));
        health.set(Condition::Overlay, Err("adding route".into()));
        assert_eq!(health.ready(), Err("overlay: adding route\n".into()));
        health.set(Condition::Overlay, Ok(()));
        assert_eq!(health.ready(), Ok(()));
        assert_eq!(health.alive(), Ok(()));
    }
}
