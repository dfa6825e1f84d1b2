//! Somewhere to keep leases: a directory, a prefix in etcd, or nodes in Kubernetes; and what an administrator or another program does to it.

use crate::etcd_server::EtcdServer;
use crate::kube_api::KubeApi;
use etcd_client::{Client, PutOptions};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::lease::{Announcement, Endpoint, LeaseTable, parse_key};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::store::{
    EtcdOptions, EtcdStore, FileStore, LEASE_TTL, LeaseStore, OwnLease, Snapshot, Store, StoreError, Want,
};
use ipnetwork::IpNetwork;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// Longer than anything takes; reached only by a red test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) enum Place {
    File(tempfile::TempDir),
    Etcd { server: Arc<EtcdServer>, prefix: String },
    Kube(KubeApi),
}

/// Runs a test of one thread, as the daemon is.
pub(crate) fn run<F: Future<Output = ()>>(place: Place, test: impl FnOnce(Place) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(place));
}

impl Place {
    pub(crate) fn directory() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    pub(crate) fn etcd(server: Arc<EtcdServer>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self::Etcd { server, prefix: format!("/test/{}/network", COUNT.fetch_add(1, Ordering::Relaxed)) }
    }

    pub(crate) fn kube(&self) -> &KubeApi {
        let Self::Kube(api) = self else { panic!("no Kubernetes") };
        api
    }

    /// Where the cluster gives subnets to nodes, it gives these to one; elsewhere the node takes its own.
    pub(crate) async fn give(&self, node: &Node, pod_cidrs: &[&str]) {
        if let Self::Kube(api) = self {
            api.join(&node.name, pod_cidrs).await;
        }
    }

    /// The handle of this node's daemon on the store.
    pub(crate) fn open_as(&self, node: &Node) -> Store {
        match self {
            Self::Kube(api) => api.open(&node.name),
            _ => self.open(),
        }
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        let Self::Etcd { server, prefix } = self else { panic!("no etcd") };
        EtcdOptions {
            endpoints: vec![format!("http://127.0.0.1:{}", server.port())],
            prefix: prefix.clone(),
            cafile: None,
            certfile: None,
            keyfile: None,
            user: None,
            ttl: LEASE_TTL,
        }
    }

    /// A daemon's handle on the store.
    pub(crate) fn open(&self) -> Store {
        self.open_with(LEASE_TTL)
    }

    pub(crate) fn open_with(&self, ttl: Duration) -> Store {
        match self {
            Self::File(directory) => Store::File(FileStore::open(directory.path().join("leases"), ttl).unwrap()),
            Self::Etcd { .. } => Store::Etcd(EtcdStore::new(EtcdOptions { ttl, ..self.options() }).unwrap()),
            Self::Kube(_) => panic!("a node is needed"),
        }
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        let Self::File(directory) = self else { panic!("no directory") };
        directory.path().join("leases").join(key)
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.options().endpoints, None).await.unwrap()
    }

    fn etcd_key(&self, key: &str) -> String {
        format!("{}/{key}", self.options().prefix)
    }

    /// Writes an entry by hand, as it has no lease it is a reservation. `key` begins with `subnets/`, or is `config`.
    pub(crate) async fn put(&self, key: &str, value: impl AsRef<[u8]>) {
        match self {
            Self::File(_) => std::fs::write(self.path(key), value).unwrap(),
            Self::Etcd { .. } => {
                drop(self.client().await.put(self.etcd_key(key), value.as_ref(), None).await.unwrap());
            }
            Self::Kube(_) => panic!("leases are no entries there"),
        }
    }

    /// Writes an entry as another node does, without looking: with an end.
    pub(crate) async fn put_with_end(&self, key: &str, value: &str) {
        match self {
            Self::File(_) => {
                let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + LEASE_TTL;
                let members = value.strip_suffix('}').unwrap();
                std::fs::write(self.path(key), format!("{members},\"ExpiresMs\":{}}}", end.as_millis())).unwrap();
            }
            Self::Etcd { .. } => {
                let mut client = self.client().await;
                let id = client.lease_grant(86_400, None).await.unwrap().id();
                let options = PutOptions::new().with_lease(id);
                client.put(self.etcd_key(key), value, Some(options)).await.unwrap();
            }
            Self::Kube(_) => panic!("leases are no entries there"),
        }
    }

    pub(crate) async fn delete(&self, key: &str) {
        match self {
            Self::File(_) => std::fs::remove_file(self.path(key)).unwrap(),
            Self::Etcd { .. } => {
                let deleted = self.client().await.delete(self.etcd_key(key), None).await.unwrap();
                assert_eq!(deleted.deleted(), 1);
            }
            Self::Kube(api) => {
                let subnets = parse_key(key.strip_prefix("subnets/").unwrap()).unwrap();
                api.leave_by(&subnets.iter().next().unwrap().1.to_string()).await;
            }
        }
    }

    /// What is there: the text, and whether it is there for ever.
    pub(crate) async fn get(&self, key: &str) -> Option<(String, bool)> {
        match self {
            Self::File(_) => {
                let text = std::fs::read_to_string(self.path(key)).ok()?;
                Some((text.clone(), !text.contains("ExpiresMs")))
            }
            Self::Etcd { .. } => {
                let answer = self.client().await.get(self.etcd_key(key), None).await.unwrap();
                let kv = answer.kvs().first()?;
                Some((kv.value_str().unwrap().to_owned(), kv.lease() == 0))
            }
            Self::Kube(_) => panic!("leases are no entries there"),
        }
    }
}

/// A node, by the last byte of its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) announcement: Announcement,
    pub(crate) previous: PerFamily<IpNetwork>,
}

pub(crate) fn node(number: u8) -> Node {
    let announcement = Announcement { backend_type: "vxlan".into(), endpoints: PerFamily::default() };
    let mut node = Node { name: format!("node-{number}"), announcement, previous: PerFamily::default() };
    node.announce(Family::V4, number, number);
    node
}

impl Node {
    /// Reached over both families.
    pub(crate) fn dual(mut self) -> Self {
        let number = self.name.trim_start_matches("node-").parse().unwrap();
        self.announce(Family::V6, number, number);
        self
    }

    pub(crate) fn announce(&mut self, family: Family, address: u8, mac: u8) {
        let public_ip = match family {
            Family::V4 => format!("192.168.64.{address}"),
            Family::V6 => format!("fd00:64::{address}"),
        };
        let data = Some(format!(r#"{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:{mac:02x}"}}"#));
        self.announcement.endpoints.set(family, Endpoint { public_ip: public_ip.parse().unwrap(), data });
    }

    pub(crate) fn remembers(mut self, subnet: &str) -> Self {
        let subnet: IpNetwork = subnet.parse().unwrap();
        self.previous.set(Family::of(subnet.ip()), subnet);
        self
    }

    pub(crate) async fn acquire(&self, store: &Store, config: &NetworkConfig) -> Result<OwnLease, StoreError> {
        let want = Want { config, announcement: &self.announcement, previous: self.previous, node: &self.name };
        store.acquire(&want).await
    }
}

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

pub(crate) fn config() -> NetworkConfig {
    NetworkConfig::parse(CONFIG).unwrap()
}

pub(crate) fn v4(own: &OwnLease) -> String {
    own.lease.subnets.v4.unwrap().to_string()
}

/// Asks again as long as the store is out of reach.
pub(crate) async fn persist<T>(request: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match request().await {
            Err(StoreError::Unavailable(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// Waits for a snapshot.
pub(crate) async fn until(watch: &mut Receiver<Snapshot>, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let found = tokio::time::timeout(PATIENCE, watch.wait_for(|snapshot| wanted(snapshot))).await;
    let found = found.ok().map(|snapshot| snapshot.unwrap().clone());
    found.unwrap_or_else(|| panic!("not seen in {PATIENCE:?}; the last was {:#?}", watch.borrow().clone()))
}

/// The leases of a snapshot, none if there is no list yet.
pub(crate) fn leases(snapshot: &Snapshot) -> LeaseTable {
    snapshot.leases.as_deref().cloned().unwrap_or_default()
}
