//! What a watch shows: complete lists, the newest only, and whether they are up to date.

use crate::family::PerFamily;
use crate::lease::{Lease, LeaseTable, Malformed, Subnets, parse_key};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// All that the store holds, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// the last complete list; kept while the store is away; none: there was none yet
    pub leases: Option<Arc<LeaseTable>>,
    /// entries that are no leases, and why: by key
    pub skipped: Arc<BTreeMap<String, String>>,
    /// what others have laid down about this node
    pub given: Given,
    /// is the list up to date?
    pub contact: Contact,
}

/// What a cluster has laid down about this node, where that is not left to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// the subnets that are to be its own
    pub subnets: Subnets,
    /// addresses by which others shall reach it, in place of the ones that it would choose
    pub public: PerFamily<IpAddr>,
}

impl Snapshot {
    /// The store has been asked, and does not answer.
    pub fn is_down(&self) -> bool {
        matches!(self.contact, Contact::Down { .. })
    }
}

/// Whether a watch hears from its store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Contact {
    /// No answer so far.
    #[default]
    Starting,
    /// Changes arrive as they happen.
    Live,
    /// The list is from before this moment.
    Down {
        /// when contact was lost
        since: SystemTime,
        /// the last error
        why: String,
    },
}

/// A running watch: complete snapshots, the newest only. The task behind it ends when this is dropped.
#[derive(Debug)]
pub struct LeaseWatch {
    snapshots: watch::Receiver<Snapshot>,
    task: JoinHandle<()>,
}

impl LeaseWatch {
    /// A receiver of snapshots. It is woken only when something has changed in them.
    pub fn receiver(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.clone()
    }
}

impl Drop for LeaseWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The entries of a store: leases, and what is none.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// the published ones, as long as nothing has changed
    pub(super) leases: Arc<LeaseTable>,
    pub(super) skipped: BTreeMap<String, String>,
    pub(super) given: Given,
}

impl Listing {
    /// Takes in one entry, new or changed. One that cannot be read never hides another.
    pub(super) fn put(&mut self, key: &str, lease: Result<Lease, Malformed>) {
        // A lease is written again to renew it.
        if let Ok(lease) = &lease
            && self.leases.get(&lease.subnets) == Some(lease)
        {
            self.skipped.remove(&shortened(key));
            return;
        }
        self.remove(key);
        match lease {
            Ok(lease) => drop(Arc::make_mut(&mut self.leases).insert(lease)),
            Err(malformed) => {
                self.skip(key, malformed);
            }
        }
    }

    /// Notes an entry that is no lease.
    pub(super) fn skip(&mut self, key: &str, malformed: Malformed) {
        self.skipped.insert(shortened(key), malformed.0);
    }

    /// Takes out an entry that is gone.
    pub(super) fn remove(&mut self, key: &str) {
        self.skipped.remove(&shortened(key));
        if let Ok(subnets) = parse_key(key)
            && self.leases.get(&subnets).is_some()
        {
            Arc::make_mut(&mut self.leases).remove(&subnets);
        }
    }
}

/// How much of a key that is none is kept and logged: it may be anything.
fn shortened(key: &str) -> String {
    key.chars().take(200).collect()
}

/// The writing end of a watch.
#[derive(Debug)]
pub(super) struct Publisher {
    snapshots: watch::Sender<Snapshot>,
    /// the store, for the log
    store: String,
}

impl Publisher {
    /// Starts a watch: `follow` publishes until it is dropped.
    pub(super) fn start<F>(store: String, follow: impl FnOnce(Self) -> F) -> LeaseWatch
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, snapshots) = watch::channel(Snapshot::default());
        LeaseWatch { snapshots, task: tokio::spawn(follow(Self { snapshots: sender, store })) }
    }

    /// Publishes a complete list. Receivers are woken only if it differs: flannel rewrites a lease to renew it.
    pub(super) fn live(&self, listing: &Listing) {
        self.snapshots.send_if_modified(|snapshot| {
            let was = snapshot.contact.clone();
            let mut changed = was != Contact::Live;
            if let Contact::Down { .. } = was {
                tracing::info!("{} is back", self.store);
            }
            snapshot.contact = Contact::Live;
            if *snapshot.skipped != listing.skipped {
                for (key, why) in listing.skipped.iter().filter(|(key, _)| !snapshot.skipped.contains_key(*key)) {
                    tracing::warn!("{}: {key:?} is no lease and is left out: {why}", self.store);
                }
                snapshot.skipped = Arc::new(listing.skipped.clone());
                changed = true;
            }
            if snapshot.given != listing.given {
                snapshot.given = listing.given;
                changed = true;
            }
            if snapshot.leases.as_ref() != Some(&listing.leases) {
                snapshot.leases = Some(listing.leases.clone());
                changed = true;
            }
            changed
        });
    }

    /// Tells that nothing is heard from the store. What was heard stays.
    pub(super) fn down(&self, why: String) {
        self.snapshots.send_if_modified(|snapshot| {
            let since = match &snapshot.contact {
                Contact::Down { why: before, .. } if *before == why => return false,
                Contact::Down { since, .. } => *since,
                Contact::Starting | Contact::Live => SystemTime::now(),
            };
            tracing::warn!("{}: {why}; the leases known so far stay in force", self.store);
            snapshot.contact = Contact::Down { since, why };
            true
        });
    }
}
