//! Leases in the Kubernetes API, in Go flannel's own format: the cluster gives each node its subnets (`spec.podCIDRs`), and the
//! node says in annotations of its Node object how it is reached. Both implementations can share one cluster, with the same
//! permissions: get of pods; get, list and watch of nodes; patch of nodes/status.

mod annotations;
mod connection;
mod credentials;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod list;
mod node;
mod roster;
mod watch;

use super::snapshot::Publisher;
use super::{LeaseStore, LeaseWatch, OwnLease, StoreError, Token, Want};
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Lease, Malformed, Subnets};
use annotations::Names;
use connection::{Connection, Failure, invalid, parse};
use ipnetwork::IpNetwork;
use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, Patch, PatchParams, PostParams};
use kube::core::request::Request;
use node::{Conditions, Node};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync;

/// How often a patch is made again that met another one.
const ROUNDS: usize = 10;
/// See [`KubeOptions::silence`].
pub const SILENCE: Duration = Duration::from_secs(150);

/// How the Kubernetes API is reached, and as which node.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// credentials; none: those of the pod that this process runs in
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the one that belongs to the credentials
    pub api_url: Option<String>,
    /// domain of flannel's annotations, such as `flannel.alpha.coreos.com`
    pub annotation_prefix: String,
    /// name of this node
    pub node: Option<String>,
    /// namespace and name of the pod that this process runs in, from which the node's name follows if it was not given
    pub pod: Option<(String, String)>,
    /// tell the cluster by a condition of the node that its network is there
    pub set_condition: bool,
    /// the families of the pod network
    pub families: Vec<Family>,
    /// after so long without a word the server is not believed to be watching any more; normally [`SILENCE`]
    pub silence: Duration,
}

/// The Kubernetes store.
#[derive(Clone, Debug)]
pub struct KubeStore {
    connection: Arc<Connection>,
    names: Arc<Names>,
    nodes: Arc<Request>,
}

impl KubeStore {
    /// Checks the options. The API server is not contacted yet.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn new(options: KubeOptions) -> Result<Self, StoreError> {
        if options.node.is_none() && options.pod.is_none() {
            return Err(StoreError::Invalid(
                "the name of this node is not known: set NODE_NAME (--node-name), or POD_NAME and POD_NAMESPACE".into(),
            ));
        }
        let names = Names::new(&options.annotation_prefix).map_err(StoreError::Invalid)?;
        Ok(Self {
            names: Arc::new(names),
            nodes: Arc::new(Request::new("/api/v1/nodes")),
            connection: Arc::new(Connection::new(options)),
        })
    }

    /// Which cluster this is, as the credentials tell without asking anybody: by its certificate authority, of which each
    /// cluster has its own; without one, by the URL. After a rotation of the authority it is another one.
    ///
    /// # Errors
    /// `Invalid`: the credentials cannot be read.
    pub async fn cluster(&self) -> Result<String, StoreError> {
        credentials::cluster(&self.connection.options).await
    }

    /// See [`super::Store::moved`].
    pub(super) fn moved(&self) {
        self.connection.moved();
    }

    /// Makes an event of this node.
    ///
    /// # Errors
    /// `Invalid` where we may not.
    pub async fn tell(&self, trouble: &str) -> Result<(), StoreError> {
        let name = self.connection.node().await?;
        let doing = format!("making an event of node {name}");
        let event = node::event(name, trouble, &now());
        let events = Request::new("/api/v1/namespaces/default/events");
        let request = events.create(&PostParams::default(), event.to_string().into_bytes());
        match self.connection.whole(request.map_err(|error| invalid(&doing, &error))?).await {
            Ok(_) => Ok(()),
            Err(Failure::Forbidden(why)) => Err(StoreError::Invalid(format!("{doing}: {why}"))),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// The Node object of this node, as text. None: there is none.
    async fn own(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let doing = format!("reading node {name}");
        let request = self.nodes.get(name, &GetParams::default()).map_err(|error| invalid(&doing, &error))?;
        match self.connection.whole(request).await {
            Ok(text) => Ok(Some(text)),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Patches the status of the node as flannel does. False: another change came in between.
    async fn patch(&self, name: &str, patch: serde_json::Value) -> Result<bool, StoreError> {
        let doing = format!("patching the status of node {name}");
        let patch = Patch::Strategic(patch);
        let request = self.nodes.patch_subresource("status", name, &PatchParams::default(), &patch);
        match self.connection.whole(request.map_err(|error| invalid(&doing, &error))?).await {
            Ok(_) => Ok(true),
            // Also one that was deleted just now: the next look tells.
            Err(Failure::Conflict(_) | Failure::Missing) => Ok(false),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Brings the annotations and the condition of this node to what they should be, and returns the subnets that the cluster
    /// has given to it and what is published. None: there is no such node. Nothing is written where nothing differs.
    async fn publish(&self, announcement: &Announcement) -> Result<Option<(Subnets, Announcement)>, StoreError> {
        let name = self.connection.node().await?;
        for _ in 0..ROUNDS {
            let Some(text) = self.own(name).await? else { return Ok(None) };
            let unreadable = |failure: Failure| failure.error(&format!("reading node {name}"));
            let (node, conditions) =
                (parse::<Node>(&text).map_err(unreadable)?, parse::<Conditions>(&text).map_err(unreadable)?);
            let subnets = node.subnets(&self.connection.options.families);
            let subnets = subnets.map_err(|Malformed(why)| StoreError::Unassigned(format!("node {name}: {why}")))?;
            let published = self.names.overwritten(announcement.clone(), node.annotations());
            // Who has no subnet has nothing to tell.
            let ready = !subnets.is_empty();
            let changes = self.names.changes(&published, &self.connection.options.families, node.annotations());
            if ready
                && !changes.is_empty()
                && !self.patch(name, serde_json::json!({"metadata": {"annotations": changes}})).await?
            {
                continue;
            }
            if ready
                && self.connection.options.set_condition
                && !conditions.network_is_up()
                && !self.patch(name, node::network_up(&now())).await?
            {
                continue;
            }
            return Ok(Some((subnets, published)));
        }
        Err(StoreError::Unavailable(format!("node {name} changes faster than it can be patched")))
    }
}

/// The subnets that a node may use: inside the networks of the configuration.
pub(super) fn check(name: &str, subnets: &Subnets, networks: &PerFamily<IpNetwork>) -> Result<(), StoreError> {
    if subnets.is_empty() {
        let families: Vec<_> = networks.families().map(|family| family.to_string()).collect();
        return Err(StoreError::Unassigned(format!(
            "node {name} has no podCIDR of {} yet (does kube-controller-manager run with --allocate-node-cidrs and a \
             --cluster-cidr of this family?)",
            families.join(" or ")
        )));
    }
    for (family, subnet) in subnets.iter() {
        let inside = |network: &IpNetwork| network.contains(subnet.network()) && network.prefix() <= subnet.prefix();
        match networks.get(family) {
            Some(network) if inside(network) => {}
            network => {
                let network = network.map_or_else(|| "none".into(), IpNetwork::to_string);
                return Err(StoreError::Unassigned(format!(
                    "podCIDR {subnet} of node {name} is not inside the {family} network of the configuration, {network}: \
                     make Network and the --cluster-cidr of kube-controller-manager the same"
                )));
            }
        }
    }
    Ok(())
}

/// As Kubernetes writes times: RFC 3339 in whole seconds.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn own(lease: Lease) -> OwnLease {
    OwnLease { lease, expires: None, token: Token::Kube }
}

impl LeaseStore for KubeStore {
    async fn network_config(&self) -> Result<String, StoreError> {
        Err(StoreError::Invalid("the Kubernetes API holds no network configuration: use --net-config-path".into()))
    }

    async fn follow_config(&self, _wake: sync::watch::Sender<()>) {
        std::future::pending().await
    }

    async fn acquire(&self, want: &Want<'_>) -> Result<OwnLease, StoreError> {
        let name = self.connection.node().await?;
        let Some((subnets, announcement)) = self.publish(want.announcement).await? else {
            return Err(StoreError::Unassigned(format!(
                "there is no node {name} in the cluster (is NODE_NAME, or --node-name, the name that kubelet registers?)"
            )));
        };
        let networks = want.config.networks();
        check(name, &subnets, &networks)?;
        for family in networks.families().filter(|family| subnets.get(*family).is_none()) {
            tracing::warn!("node {name} has no {family} podCIDR: its pods go without {family}");
        }
        Ok(own(Lease { subnets, announcement }))
    }

    async fn renew(&self, held: &OwnLease, announcement: &Announcement) -> Result<OwnLease, StoreError> {
        match self.publish(announcement).await? {
            Some((subnets, announcement)) if subnets == held.lease.subnets => Ok(own(Lease { subnets, announcement })),
            // The node was deleted, or re-created with another subnet.
            _ => Err(StoreError::Lost { key: held.lease.key(), by: None }),
        }
    }

    /// The subnets are the node's as long as it is in the cluster.
    async fn release(&self, _own: &OwnLease) -> Result<(), StoreError> {
        Ok(())
    }

    fn watch(&self) -> LeaseWatch {
        let store = self.clone();
        Publisher::start(self.connection.name(), |publisher| watch::follow(store, publisher))
    }
}
