//! Leases in etcd v3, in Go flannel's own format: both implementations can share one cluster.
//!
//! ```text
//! <prefix>/config          the network configuration
//! <prefix>/subnets/<key>   one lease each, on an etcd lease of 24 h; without one it is a reservation, which stays
//! ```

mod certificates;
mod connection;
mod keys;
#[cfg(test)]
mod simulation;
mod user;
mod watch;

use super::choice::{self, Choice, Known};
use super::snapshot::Publisher;
use super::{LeaseStore, LeaseWatch, OwnLease, StoreError, Token, Want};
use crate::lease::{Announcement, Lease, Subnets, overlap};
use crate::wall_clock;
use connection::Connection;
use keys::{Entry, Expect, Put};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use user::{Password, User};

/// How often a race is run again. Whoever loses sees what the winner took, so that few rounds are enough for hundreds of nodes.
const ROUNDS: usize = 100;

/// How etcd is reached.
#[derive(Clone)]
pub struct EtcdOptions {
    /// URLs, tried in turn
    pub endpoints: Vec<String>,
    /// prefix of all keys, such as `/coreos.com/network`
    pub prefix: String,
    /// certificate authority of the servers, PEM; none: those the machine trusts
    pub cafile: Option<PathBuf>,
    /// client certificate, PEM; goes with `keyfile`
    pub certfile: Option<PathBuf>,
    /// client key, PEM
    pub keyfile: Option<PathBuf>,
    /// as whom, to an etcd with users
    pub user: Option<User>,
    /// life of a lease without renewal, in full seconds; normally [`super::LEASE_TTL`]
    pub ttl: Duration,
}

impl std::fmt::Debug for EtcdOptions {
    /// Without the password.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "etcd {} {}", self.endpoints.join(","), self.prefix)
    }
}

/// The etcd store.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    connection: Arc<Connection>,
    /// the wire to a server in memory, which then is asked instead
    #[cfg(test)]
    simulated: Option<simulation::Wire>,
}

impl EtcdStore {
    /// Checks the options, reads the certificates. The servers are not contacted yet.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn new(mut options: EtcdOptions) -> Result<Self, StoreError> {
        options.prefix.truncate(options.prefix.trim_end_matches('/').len());
        let connection = Arc::new(Connection::new(options)?);
        Ok(Self {
            connection,
            #[cfg(test)]
            simulated: None,
        })
    }

    /// A number below `bound`; 0 if there is none.
    fn random(&self, bound: usize) -> usize {
        #[cfg(test)]
        if let Some(wire) = &self.simulated {
            return wire.random(bound);
        }
        rand::random_range(0..bound.max(1))
    }

    /// See [`super::Store::moved`].
    pub(super) fn moved(&self) {
        self.connection.moved();
    }

    /// One attempt to get a lease. None: another node was faster.
    async fn attempt(&self, want: &Want<'_>, grant: &mut Grant) -> Result<Option<OwnLease>, StoreError> {
        let entries = self.list().await?;
        let known: Vec<Known<'_>> = entries
            .iter()
            .map(|entry| Known {
                subnets: &entry.subnets,
                announcement: &entry.announcement,
                node: None,
                reserved: entry.lease == 0,
            })
            .collect();
        let (subnets, expect, reserved) = match choice::choose(want, &known, |bound| self.random(bound)) {
            Choice::Ours(index) => match entries.get(index) {
                Some(ours) => (ours.subnets, Expect::Revision(ours.revision), ours.lease == 0),
                None => return Ok(None),
            },
            Choice::Free { subnets, stale } => {
                for ours in stale.into_iter().filter_map(|index| entries.get(index)) {
                    tracing::warn!(
                        "own lease {} no longer fits the network configuration and is given up",
                        crate::lease::key(&ours.subnets)
                    );
                    self.delete(&ours.subnets, ours.revision).await?;
                }
                (subnets, Expect::Absent, false)
            }
            Choice::Exhausted => return Err(StoreError::Exhausted(choice::exhausted(want, known.len()))),
        };
        let lease = Lease { subnets, announcement: want.announcement.clone() };
        let id = if reserved { 0 } else { grant.id(self).await? };
        let Put::Done(revision) = self.put(&lease, id, expect).await? else { return Ok(None) };
        if expect == Expect::Absent && self.is_contested(&subnets, revision).await? {
            self.delete(&subnets, revision).await?;
            return Ok(None);
        }
        Ok(Some(grant.own(lease, revision, reserved)))
    }

    /// Somebody created, before this revision, another key that shares addresses with these subnets. A key's absence does not
    /// rule that out: in dual stack two nodes may pair one IPv4 subnet with different IPv6 subnets.
    async fn is_contested(&self, subnets: &Subnets, revision: i64) -> Result<bool, StoreError> {
        let shares = |entry: &Entry| {
            let pairs = subnets.iter().filter_map(|(family, own)| Some((own, entry.subnets.get(family)?)));
            pairs.into_iter().any(|(own, other)| overlap(own, other))
        };
        Ok(self
            .list()
            .await?
            .iter()
            .any(|entry| entry.created < revision && entry.subnets != *subnets && shares(entry)))
    }

    async fn try_renew(
        &self,
        own: &OwnLease,
        announcement: &Announcement,
        grant: &mut Grant,
    ) -> Result<OwnLease, StoreError> {
        let Token::Etcd { revision, lease: old } = own.token else { return Err(foreign(own)) };
        let lease = Lease { subnets: own.lease.subnets, announcement: announcement.clone() };
        let (mut expect, mut reserved) = (revision, own.is_reservation());
        for _ in 0..ROUNDS {
            let found = if reserved {
                // Looked at first: a reservation that says what it should is not written again.
                self.get(&lease.subnets).await?
            } else {
                let id = grant.id(self).await?;
                match self.put(&lease, id, Expect::Revision(expect)).await? {
                    Put::Done(revision) => {
                        // The key has left its old etcd lease, which would lie about for up to a day.
                        self.revoke(old).await;
                        return Ok(grant.own(lease, revision, false));
                    }
                    Put::Refused(found) => found,
                }
            };
            let found = found.ok_or_else(|| StoreError::Lost { key: lease.key(), by: None })?;
            // Another revision need not be another node: an answer of ours may have been lost on its way, Go flannel may
            // have run here in between, or an administrator made a reservation of it.
            if !found.is_of(announcement) && !found.is_of(&own.lease.announcement) {
                return Err(StoreError::Lost { key: lease.key(), by: found.announcement.public_ip() });
            }
            expect = found.revision;
            if found.announcement != Announcement::default() {
                reserved = found.lease == 0;
            }
            if reserved {
                if found.announcement == *announcement {
                    return Ok(grant.own(lease, expect, true));
                }
                if let Put::Done(revision) = self.put(&lease, 0, Expect::Revision(expect)).await? {
                    return Ok(grant.own(lease, revision, true));
                }
            }
        }
        Err(StoreError::Unavailable(format!("lease {}: it changes faster than it can be renewed", lease.key())))
    }
}

fn foreign(own: &OwnLease) -> StoreError {
    StoreError::Invalid(format!("lease {} is of another store", own.lease.key()))
}

/// The etcd lease on which a key is to hang, asked for when it is first needed.
#[derive(Default)]
struct Grant {
    granted: Option<(i64, Duration)>,
    asked: Option<SystemTime>,
}

impl Grant {
    async fn id(&mut self, store: &EtcdStore) -> Result<i64, StoreError> {
        if let Some((id, _)) = self.granted {
            return Ok(id);
        }
        // From before the request: never later than what the server counts from.
        self.asked = Some(wall_clock::now());
        let granted = store.grant().await?;
        self.granted = Some(granted);
        Ok(granted.0)
    }

    fn own(&self, lease: Lease, revision: i64, reserved: bool) -> OwnLease {
        match (self.granted, self.asked) {
            (Some((id, ttl)), Some(asked)) if !reserved => OwnLease {
                lease,
                expires: Some(asked.checked_add(ttl).unwrap_or(asked)),
                token: Token::Etcd { revision, lease: id },
            },
            _ => OwnLease { lease, expires: None, token: Token::Etcd { revision, lease: 0 } },
        }
    }

    /// An etcd lease that carries no key after all is given back.
    async fn settle(self, store: &EtcdStore, outcome: &Result<OwnLease, StoreError>) {
        if let Some((id, _)) = self.granted
            && !outcome.as_ref().is_ok_and(|own| matches!(own.token, Token::Etcd { lease, .. } if lease == id))
        {
            store.revoke(id).await;
        }
    }
}

impl LeaseStore for EtcdStore {
    async fn network_config(&self) -> Result<String, StoreError> {
        self.config().await
    }

    async fn follow_config(&self, wake: tokio::sync::watch::Sender<()>) {
        watch::follow_config(self, wake).await;
    }

    async fn acquire(&self, want: &Want<'_>) -> Result<OwnLease, StoreError> {
        let mut grant = Grant::default();
        let mut outcome = Err(StoreError::Unavailable(format!("{ROUNDS} other nodes were faster to take a subnet")));
        for _ in 0..ROUNDS {
            match self.attempt(want, &mut grant).await {
                Ok(None) => tracing::debug!("another node took the subnet first: trying the next one"),
                Ok(Some(own)) => {
                    outcome = Ok(own);
                    break;
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        grant.settle(self, &outcome).await;
        outcome
    }

    async fn renew(&self, own: &OwnLease, announcement: &Announcement) -> Result<OwnLease, StoreError> {
        let mut grant = Grant::default();
        let outcome = self.try_renew(own, announcement, &mut grant).await;
        grant.settle(self, &outcome).await;
        outcome
    }

    async fn release(&self, own: &OwnLease) -> Result<(), StoreError> {
        let Token::Etcd { mut revision, .. } = own.token else { return Err(foreign(own)) };
        for _ in 0..ROUNDS {
            if self.delete(&own.lease.subnets, revision).await? {
                return Ok(());
            }
            match self.get(&own.lease.subnets).await? {
                Some(found) if found.lease != 0 && found.is_of(&own.lease.announcement) => revision = found.revision,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn watch(&self) -> LeaseWatch {
        let store = self.clone();
        Publisher::start(self.connection.name(), |publisher| watch::follow(store, publisher))
    }
}
