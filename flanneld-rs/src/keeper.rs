//! Keeps this node's lease: acquires it, renews it in time, publishes what changed about the node, and gets it back when
//! it was lost. The rest of the daemon only reads the newest lease.

use crate::family::PerFamily;
use crate::health::{Condition, Health};
use crate::lease::{self, Announcement, Subnets};
use crate::reload::Configuration;
use crate::store::{Contact, Held, LeaseStore, OwnLease, Snapshot, Store, StoreError, Want};
use crate::wall_clock;
use ipnetwork::IpNetwork;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Between two attempts at a store that does not answer: short at first, since a node without a lease has no pods.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A list of leases that lags behind our own writes is no reason for a storm of renewals.
const DOUBT: Duration = Duration::from_secs(2);
/// One that stays otherwise, whatever we write, is met with growing patience, up to this.
const LONGEST_DOUBT: Duration = Duration::from_secs(60);
/// The longest sleep between two looks at the wall clock, which may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What people are told while the node serves its pods with a lease that the store has not confirmed.
const REMEMBERED: &str = "lease from memory";
/// What people are told when the node could not get its subnet back.
const MOVED: &str = "subnet of this node's pods";

/// What the keeper works with.
pub struct Keeper {
    /// where leases are
    pub store: Arc<Store>,
    /// the pools, as they are from time to time
    pub config: watch::Receiver<Arc<Configuration>>,
    /// identity of this node
    pub node: String,
    /// subnets of this node's last life
    pub previous: PerFamily<IpNetwork>,
    /// the lease of this node's last life, if it is in force until the store says otherwise
    pub remembered: Option<Held>,
    /// how long before its end a lease is renewed
    pub margin: Duration,
    /// what the others shall know; changes are published
    pub announcement: watch::Receiver<Announcement>,
    /// what the store holds
    pub snapshots: watch::Receiver<Snapshot>,
    /// the node's health
    pub health: Health,
}

impl Keeper {
    /// Keeps the lease for ever and hands every new state of it to `leases`. Ends with an error that trying again does not
    /// mend, but only on a node that never had a lease: one that has pods to serve goes on trying.
    pub async fn run(mut self, leases: watch::Sender<Option<Held>>) -> StoreError {
        loop {
            let own = match self.acquire(&leases).await {
                Ok(own) => own,
                Err(error) => return error,
            };
            tracing::info!("leased {}", own.lease);
            self.health.note(REMEMBERED, String::new());
            if let Some(former) = self.former(&leases).filter(|former| *former != own.lease.subnets) {
                let (former, now) = (lease::key(&former), own.lease.key());
                let text = format!("{now} now; {former} is lost: pods that have addresses of it must be replaced");
                self.health.note(MOVED, text);
            }
            // From here on the store's word counts; what it takes away does not come back from memory.
            self.remembered = None;
            self.previous = own.lease.subnets;
            self.health.set(Condition::Lease, Ok(()));
            leases.send_replace(Some(Held::from(&own)));
            let reason = self.keep(own, &leases).await;
            // The pods and the kernel's tables stay as they are while the lease is fought for.
            self.health.set(Condition::Lease, Err(reason.to_string()));
        }
    }

    /// The subnets that the node's pods have addresses of, if there may be any.
    fn former(&self, leases: &watch::Sender<Option<Held>>) -> Option<Subnets> {
        leases.borrow().as_ref().or(self.remembered.as_ref()).map(|held| held.lease.subnets)
    }

    /// While the store does not answer, the lease of the last life is in force: the node's pods have no use for waiting.
    async fn acquire(&mut self, leases: &watch::Sender<Option<Held>>) -> Result<OwnLease, StoreError> {
        let mut pause = FIRST_RETRY;
        loop {
            self.snapshots.mark_unchanged();
            let announcement = self.announcement.borrow_and_update().clone();
            let in_force = self.config.borrow_and_update().clone();
            let (config, previous) = (&in_force.config, self.previous);
            let want = Want { config, announcement: &announcement, previous, node: &self.node };
            match self.store.acquire(&want).await {
                // Of pools that have changed meanwhile.
                Ok(own) if !self.store.allows(&self.config.borrow().config, &own.lease.subnets) => continue,
                Ok(own) => return Ok(own),
                Err(error @ StoreError::Invalid(_)) if self.former(leases).is_none() => return Err(error),
                Err(StoreError::Unavailable(why) | StoreError::Invalid(why)) if self.remembered.is_some() => {
                    if let Some(held) = &mut self.remembered {
                        held.lease.announcement = announcement;
                        let key = held.lease.key();
                        let (note, condition) = match held.lost {
                            false => (format!("{key} until the store confirms it: {why}"), Ok(())),
                            true => (String::new(), Err(format!("{key} was lost, and the store is away: {why}"))),
                        };
                        self.health.note(REMEMBERED, note);
                        self.health.set(Condition::Lease, condition);
                        leases.send_replace(Some(held.clone()));
                    }
                }
                Err(error) => {
                    self.health.set(Condition::Lease, Err(format!("waiting for a subnet lease: {error}")));
                    self.lose(leases);
                }
            }
            // What the store shows may be what is waited for: a subnet that it has given to this node, or the store itself.
            sleep(pause / 8).await;
            tokio::select! {
                biased;
                () = sleep(pause - pause / 8) => pause = (2 * pause).min(LAST_RETRY),
                // Perhaps there is room now.
                Ok(()) = self.config.changed() => pause = FIRST_RETRY,
                Ok(()) = self.snapshots.changed() => pause = (2 * pause).min(LAST_RETRY),
            }
        }
    }

    /// The store has said that the node has no subnet: what its pods have stays, also from memory, but is given to no other.
    fn lose(&mut self, leases: &watch::Sender<Option<Held>>) {
        if let Some(remembered) = &mut self.remembered {
            remembered.lost = true;
        }
        let remembered = &self.remembered;
        leases.send_if_modified(|held| match held {
            Some(held) => !std::mem::replace(&mut held.lost, true),
            None => {
                held.clone_from(remembered);
                held.is_some()
            }
        });
    }

    /// Returns when the lease is lost, with the reason.
    async fn keep(&mut self, mut own: OwnLease, leases: &watch::Sender<Option<Held>>) -> StoreError {
        let mut pause = FIRST_RETRY;
        let mut retry: Option<Instant> = None;
        // A list that has caught up once is believed at once, but no more often than that: others may write as we do.
        let (mut doubt, mut doubt_from, mut believed_from) = (DOUBT, Instant::now() + DOUBT, Instant::now());
        // Whichever comes first: the wall clock also counts while the machine sleeps, this one is never set back.
        let mut latest = Instant::now() + self.until_renewal(&own);
        loop {
            let due = retry.unwrap_or_else(|| latest.min(Instant::now() + self.until_renewal(&own)));
            let bounded = due.min(Instant::now() + LONGEST_SLEEP);
            let shown = self.shows(&own);
            if shown == Some(true) {
                doubt = DOUBT;
                doubt_from = doubt_from.min(believed_from);
            }
            let mut doubted = false;
            let renew = tokio::select! {
                // In one order, so that a simulation can be repeated.
                biased;
                () = sleep_until(bounded) => due <= Instant::now() || self.until_renewal(&own).is_zero(),
                () = sleep_until(doubt_from), if shown == Some(false) => {
                    believed_from = Instant::now() + DOUBT;
                    doubted = true;
                    tracing::warn!("lease {}: the store shows it otherwise than we left it", own.lease.key());
                    true
                }
                changed = self.announcement.changed() => {
                    if changed.is_err() {
                        // The daemon is ending; so will this task.
                        std::future::pending::<()>().await;
                    }
                    true
                }
                // Also while in doubt: the list that comes next may show that there is no reason for it.
                _ = self.snapshots.changed() => false,
            };
            if !renew {
                continue;
            }
            doubt_from = Instant::now() + doubt;
            if doubted {
                doubt = (2 * doubt).min(LONGEST_DOUBT);
            }
            let announcement = self.announcement.borrow_and_update().clone();
            match self.store.renew(&own, &announcement).await {
                Ok(renewed) => {
                    if renewed.lease != own.lease {
                        tracing::info!("lease now {}", renewed.lease);
                    }
                    own = renewed;
                    latest = Instant::now() + self.until_renewal(&own);
                    (pause, retry) = (FIRST_RETRY, None);
                    self.health.note("lease renewal", String::new());
                    leases.send_replace(Some(Held::from(&own)));
                }
                Err(lost @ StoreError::Lost { .. }) => return lost,
                // No reason to stop serving pods, not even a permission that was taken away by mistake: the subnet stays
                // ours as long as nobody else takes it.
                Err(error) => {
                    self.health.note("lease renewal", error.to_string());
                    retry = Some(Instant::now() + pause);
                    pause = (2 * pause).min(LAST_RETRY);
                }
            }
        }
    }

    fn until_renewal(&self, own: &OwnLease) -> Duration {
        match own.expires {
            Some(expires) => expires.duration_since(wall_clock::now()).unwrap_or_default().saturating_sub(self.margin),
            None => Duration::MAX / 4,
        }
    }

    /// Whether the list shows our lease as we left it. None: it is not up to date. False: the lease was deleted or overwritten,
    /// unless the list lags behind; the store tells which when it is asked to renew.
    fn shows(&mut self, own: &OwnLease) -> Option<bool> {
        let snapshot = self.snapshots.borrow_and_update();
        let leases = snapshot.leases.as_ref().filter(|_| snapshot.contact == Contact::Live)?;
        Some(leases.get(&own.lease.subnets) == Some(&own.lease))
    }
}
