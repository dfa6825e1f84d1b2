//! Leases in a directory that the daemons of one machine share. The embedded default: nothing else has to run.
//!
//! ```text
//! <directory>/config          the network configuration, written by the operator
//! <directory>/subnets/<key>   one lease each, named as flannel names its etcd keys
//! <directory>/lock            held (flock) while leases are changed
//! <directory>/.writing        the next lease file, before it is renamed into subnets/
//! ```

mod directory;
mod record;
mod watch;

use super::choice::{self, Choice, Known};
use super::snapshot::Publisher;
use super::{LeaseStore, LeaseWatch, OwnLease, StoreError, Token, Want};
use crate::lease::{Announcement, Lease};
use crate::network_config::NetworkConfig;
use directory::Directory;
use ipnetwork::IpNetwork;
use record::{Entry, Record};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The file store.
#[derive(Clone, Debug)]
pub struct FileStore {
    directory: Directory,
    ttl: Duration,
}

impl FileStore {
    /// Opens the store in a directory, which is made if it does not exist. `ttl` is the life of a lease without renewal,
    /// normally [`super::LEASE_TTL`].
    ///
    /// # Errors
    /// `Invalid` when the directory cannot be made or written.
    pub fn open(directory: impl Into<PathBuf>, ttl: Duration) -> Result<Self, StoreError> {
        Ok(Self { directory: Directory::open(directory.into())?, ttl })
    }

    fn acquire_now(&self, request: &Request) -> Result<OwnLease, StoreError> {
        let _lock = self.directory.lock()?;
        let now = SystemTime::now();
        let (expired, live): (Vec<Entry>, Vec<Entry>) =
            self.directory.list()?.into_iter().partition(|entry| entry.has_expired(self.ttl, now));
        // Gone for good, so that no late renewal brings one back over what is chosen now.
        for entry in &expired {
            self.directory.remove(&entry.key)?;
        }
        let claims: Vec<_> =
            live.iter().filter_map(|entry| entry.claim(self.ttl).map(|claim| (entry, claim))).collect();
        let known: Vec<Known<'_>> = claims
            .iter()
            .map(|(entry, (subnets, announcement, _))| Known {
                subnets,
                announcement,
                node: entry.node(),
                reserved: entry.is_reservation(),
            })
            .collect();
        let want = request.want();
        let entry = |index: usize| claims.get(index).map(|(entry, _)| *entry);
        let (subnets, reserved) = match choice::choose(&want, &known, |bound| rand::random_range(0..bound.max(1))) {
            Choice::Ours(index) => match known.get(index) {
                Some(ours) => (*ours.subnets, ours.reserved),
                None => return Err(StoreError::Unavailable("the lease list changed while it was read".into())),
            },
            Choice::Free { subnets, stale } => {
                for ours in stale.into_iter().filter_map(entry) {
                    tracing::warn!("own lease {} no longer fits the network configuration and is given up", ours.key);
                    self.directory.remove(&ours.key)?;
                }
                (subnets, false)
            }
            Choice::Exhausted => return Err(StoreError::Exhausted(choice::exhausted(&want, known.len()))),
        };
        let lease = Lease { subnets, announcement: request.announcement.clone() };
        self.put(lease, request.node.clone(), reserved, now)
    }

    fn renew_now(&self, own: &OwnLease, announcement: &Announcement) -> Result<OwnLease, StoreError> {
        let Token::File { node, .. } = &own.token else { return Err(foreign(own)) };
        let _lock = self.directory.lock()?;
        let reserved = self.held(own, announcement)?.is_some_and(|entry| entry.is_reservation());
        let lease = Lease { subnets: own.lease.subnets, announcement: announcement.clone() };
        self.put(lease, node.clone(), reserved, SystemTime::now())
    }

    fn release_now(&self, own: &OwnLease) -> Result<(), StoreError> {
        let _lock = self.directory.lock()?;
        match self.held(own, &own.lease.announcement) {
            Ok(Some(entry)) if !entry.is_reservation() => self.directory.remove(&entry.key),
            Ok(_) | Err(StoreError::Lost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The file of a lease of ours. None: its content is nobody's, so that the lease is ours still.
    fn held(&self, own: &OwnLease, announcement: &Announcement) -> Result<Option<Entry>, StoreError> {
        let Token::File { node, text } = &own.token else { return Err(foreign(own)) };
        let key = own.lease.key();
        let Some(entry) = self.directory.read(&key)? else { return Err(StoreError::Lost { key, by: None }) };
        let Ok(record) = &entry.record else { return Ok(None) };
        let theirs = &record.lease.announcement;
        let ours = record.text() == *text
            || record.node.as_ref() == Some(node)
            || theirs.is_same_node(announcement)
            || theirs.is_same_node(&own.lease.announcement);
        if ours { Ok(Some(entry)) } else { Err(StoreError::Lost { key, by: theirs.public_ip() }) }
    }

    fn put(&self, lease: Lease, node: String, reserved: bool, now: SystemTime) -> Result<OwnLease, StoreError> {
        let expires = if reserved { None } else { now.checked_add(self.ttl) };
        let record = Record { lease, node: Some(node.clone()), expires };
        let text = record.text();
        self.directory.write(&record.lease.key(), &text)?;
        Ok(OwnLease { lease: record.lease, expires, token: Token::File { node, text } })
    }
}

fn foreign(own: &OwnLease) -> StoreError {
    StoreError::Invalid(format!("lease {} is of another store", own.lease.key()))
}

/// A [`Want`] that can be sent to the thread that does the file operations.
struct Request {
    config: NetworkConfig,
    announcement: Announcement,
    previous: crate::family::PerFamily<IpNetwork>,
    node: String,
}

impl Request {
    fn want(&self) -> Want<'_> {
        Want { config: &self.config, announcement: &self.announcement, previous: self.previous, node: &self.node }
    }
}

/// File operations wait for locks and disks: they get a thread, so that the daemon's one goes on.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Unavailable(format!("the file store's thread ended: {error}"))),
    }
}

impl LeaseStore for FileStore {
    async fn network_config(&self) -> Result<String, StoreError> {
        self.directory.config().read().await
    }

    async fn follow_config(&self, wake: tokio::sync::watch::Sender<()>) {
        self.directory.config().follow(wake).await;
    }

    async fn acquire(&self, want: &Want<'_>) -> Result<OwnLease, StoreError> {
        let request = Request {
            config: want.config.clone(),
            announcement: want.announcement.clone(),
            previous: want.previous,
            node: want.node.to_owned(),
        };
        let store = self.clone();
        aside(move || store.acquire_now(&request)).await
    }

    async fn renew(&self, own: &OwnLease, announcement: &Announcement) -> Result<OwnLease, StoreError> {
        let (store, own, announcement) = (self.clone(), own.clone(), announcement.clone());
        aside(move || store.renew_now(&own, &announcement)).await
    }

    async fn release(&self, own: &OwnLease) -> Result<(), StoreError> {
        let (store, own) = (self.clone(), own.clone());
        aside(move || store.release_now(&own)).await
    }

    fn watch(&self) -> LeaseWatch {
        let store = self.clone();
        Publisher::start(format!("lease store {}", self.directory), |publisher| watch::follow(store, publisher))
    }
}

/// A way in for the fuzz targets: the content of a lease file, and what we would write for it.
#[cfg(fuzzing)]
pub(crate) fn rewrite_record(key: &str, content: &[u8]) -> Option<String> {
    record::Record::parse(key, content).ok().map(|record| record.text())
}
