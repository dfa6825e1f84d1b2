//! Where the cluster keeps its leases. One trait; a file store, an etcd store and a Kubernetes store; one set of contract tests.

mod choice;
mod etcd;
mod file;
mod kube;
mod named;
mod snapshot;

use crate::family::PerFamily;
use crate::lease::{Announcement, Lease, Subnets};
use crate::network_config::NetworkConfig;
use ipnetwork::IpNetwork;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

pub use etcd::{EtcdOptions, EtcdStore, Password, User};
pub use file::FileStore;
#[cfg(fuzzing)]
pub(crate) use file::rewrite_record;
#[cfg(fuzzing)]
pub(crate) use kube::fuzzing as kubernetes;
pub use kube::{KubeOptions, KubeStore, SILENCE};
pub use snapshot::{Contact, Given, LeaseWatch, Snapshot};

/// How long a lease lives without renewal: flannel's 24 hours, so that both implementations give up a dead node alike.
pub const LEASE_TTL: Duration = Duration::from_secs(86_400);

/// What a node asks of the store.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// the pools to take subnets from
    pub config: &'a NetworkConfig,
    /// what peers shall know of this node
    pub announcement: &'a Announcement,
    /// the subnets of this node's last life (from `subnet.env`); taken again if they are free and still fit
    pub previous: PerFamily<IpNetwork>,
    /// identity of this node, stable across restarts and address changes
    pub node: &'a str,
}

/// A lease of this node, and the proof by which it is renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    /// what the store holds
    pub lease: Lease,
    /// when it ends without renewal; none: a reservation, which never ends
    pub expires: Option<SystemTime>,
    token: Token,
}

impl OwnLease {
    /// An administrator bound this subnet to this node for ever.
    pub fn is_reservation(&self) -> bool {
        self.expires.is_none()
    }
}

/// What the rest of the daemon knows of this node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// the subnets, and what peers know of this node
    pub lease: Lease,
    /// when it ends without renewal; none: a reservation, which never ends
    pub expires: Option<SystemTime>,
    /// the store has taken it back and gives nothing in its place so far: what stands stays for the pods that have addresses
    /// of it, but no other pod may get one, which would soon be somebody else's
    pub lost: bool,
}

impl Held {
    /// One that is in force.
    pub fn new(lease: Lease, expires: Option<SystemTime>) -> Self {
        Held { lease, expires, lost: false }
    }
}

impl From<&OwnLease> for Held {
    fn from(own: &OwnLease) -> Self {
        Held::new(own.lease.clone(), own.expires)
    }
}

/// What a store needs for its compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// node identity, and the file's text as we left it
    File { node: String, text: String },
    /// revision of the key as we left it, and the etcd lease it hangs on (0: none)
    Etcd { revision: i64, lease: i64 },
    /// none: the cluster gives the subnet to the node
    Kube,
}

/// Why a store did not do what it was asked. The text names the object and what the operator can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It cannot answer now: to be tried again.
    Unavailable(String),
    /// Every subnet of the pool is leased.
    Exhausted(String),
    /// It is the cluster that gives subnets to nodes, and it has given none, or an unusable one, to this node so far.
    Unassigned(String),
    /// The lease is no longer ours.
    Lost {
        /// key of the lease
        key: String,
        /// who holds it now; none: it was deleted or has expired
        by: Option<IpAddr>,
    },
    /// Trying again will not help: the request, the options or the configuration are wrong.
    Invalid(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(text) | Self::Exhausted(text) | Self::Unassigned(text) | Self::Invalid(text) => {
                out.write_str(text)
            }
            Self::Lost { key, by: Some(by) } => {
                write!(out, "lease {key} was lost: {by} holds it now (is another node using this node's identity?)")
            }
            Self::Lost { key, by: None } => write!(out, "lease {key} was lost: it was deleted or has expired"),
        }
    }
}

impl std::error::Error for StoreError {}

/// What every store can do. The contract is in `tests/store_contract.rs`.
pub trait LeaseStore {
    /// The network configuration as JSON text.
    ///
    /// # Errors
    /// `Unavailable` while it is not there.
    fn network_config(&self) -> impl Future<Output = Result<String, StoreError>> + Send;

    /// Wakes `wake` now, and whenever the network configuration may have changed, until it is dropped: it never ends.
    fn follow_config(&self, wake: watch::Sender<()>) -> impl Future<Output = ()> + Send;

    /// Leases a subnet of each pool: the one this node already has, else the previous one, else any that is free.
    ///
    /// # Errors
    /// `Exhausted` when no subnet is left.
    fn acquire(&self, want: &Want<'_>) -> impl Future<Output = Result<OwnLease, StoreError>> + Send;

    /// Makes a lease last for another [`LEASE_TTL`] and publishes the announcement in it.
    ///
    /// # Errors
    /// `Lost` when the lease is not ours any more: to be acquired anew.
    fn renew(
        &self,
        own: &OwnLease,
        announcement: &Announcement,
    ) -> impl Future<Output = Result<OwnLease, StoreError>> + Send;

    /// Gives a lease up. A reservation stays. A lease that is gone or another's is none of ours: success.
    ///
    /// # Errors
    /// `Unavailable`.
    fn release(&self, own: &OwnLease) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Starts to follow all leases. Must be called within a tokio runtime.
    fn watch(&self) -> LeaseWatch;
}

/// The store that the options name.
#[derive(Debug)]
pub enum Store {
    /// a directory
    File(FileStore),
    /// an etcd cluster
    Etcd(EtcdStore),
    /// the Kubernetes API
    Kube(KubeStore),
}

impl Store {
    /// The node has other addresses than before: what goes over a connection from an old one is lost.
    pub fn moved(&self) {
        match self {
            Self::File(_) => {}
            Self::Etcd(store) => store.moved(),
            Self::Kube(store) => store.moved(),
        }
    }

    /// Nodes take their subnets from the pools of the configuration; elsewhere the cluster gives them, of any size.
    pub fn has_pools(&self) -> bool {
        !matches!(self, Self::Kube(_))
    }

    /// A node may hold these subnets: of the pools or, where the cluster gives them, inside the networks.
    pub fn allows(&self, config: &NetworkConfig, subnets: &Subnets) -> bool {
        if self.has_pools() { config.allows(subnets) } else { kube::check("", subnets, &config.networks()).is_ok() }
    }
}

impl LeaseStore for Store {
    async fn network_config(&self) -> Result<String, StoreError> {
        match self {
            Self::File(store) => store.network_config().await,
            Self::Etcd(store) => store.network_config().await,
            Self::Kube(store) => store.network_config().await,
        }
    }

    async fn follow_config(&self, wake: watch::Sender<()>) {
        match self {
            Self::File(store) => store.follow_config(wake).await,
            Self::Etcd(store) => store.follow_config(wake).await,
            Self::Kube(store) => store.follow_config(wake).await,
        }
    }

    async fn acquire(&self, want: &Want<'_>) -> Result<OwnLease, StoreError> {
        match self {
            Self::File(store) => store.acquire(want).await,
            Self::Etcd(store) => store.acquire(want).await,
            Self::Kube(store) => store.acquire(want).await,
        }
    }

    async fn renew(&self, own: &OwnLease, announcement: &Announcement) -> Result<OwnLease, StoreError> {
        match self {
            Self::File(store) => store.renew(own, announcement).await,
            Self::Etcd(store) => store.renew(own, announcement).await,
            Self::Kube(store) => store.renew(own, announcement).await,
        }
    }

    async fn release(&self, own: &OwnLease) -> Result<(), StoreError> {
        match self {
            Self::File(store) => store.release(own).await,
            Self::Etcd(store) => store.release(own).await,
            Self::Kube(store) => store.release(own).await,
        }
    }

    fn watch(&self) -> LeaseWatch {
        match self {
            Self::File(store) => store.watch(),
            Self::Etcd(store) => store.watch(),
            Self::Kube(store) => store.watch(),
        }
    }
}
