//! An API server to keep leases in: the double or a real one. Each test has an annotation prefix and node names of its own, so
//! that many can share one server.

use crate::api_server::{ADMIN, ApiServer};
use crate::kube_server::KubeServer;
use crate::place::PATIENCE;
use flanneld_rs::family::Family;
use flanneld_rs::store::{KubeOptions, KubeStore, SILENCE, Store};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Each test on the double and, where there is one, on a real API server, by the caller's `run_on`.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod double {
            $(#[test] fn $test() { super::run_on(crate::kube_api::KubeApi::double(), super::$test) })*
        }
        mod real {
            $(#[test] fn $test() {
                if let Some(server) = crate::kube_server::KubeServer::shared() {
                    super::run_on(crate::kube_api::KubeApi::real(server), super::$test)
                }
            })*
        }
    };
}
pub(crate) use on_both;

pub(crate) struct KubeApi {
    /// the double, unless the server is a real one
    pub(crate) double: Option<ApiServer>,
    _real: Option<Arc<KubeServer>>,
    address: SocketAddr,
    directory: tempfile::TempDir,
    number: usize,
}

impl KubeApi {
    pub(crate) fn double() -> Self {
        let double = ApiServer::new();
        let address = double.serve(TcpListener::bind(("127.0.0.1", 0)).unwrap()).unwrap();
        let kubeconfig = |token| kubeconfig(&format!("http://{address}"), "", token);
        Self::new(Some(double), None, address, [kubeconfig(ADMIN), kubeconfig("node")])
    }

    pub(crate) fn real(server: Arc<KubeServer>) -> Self {
        let kubeconfigs = ["admin", "node"].map(|token| server.kubeconfig(token));
        let address = server.address();
        Self::new(None, Some(server), address, kubeconfigs)
    }

    fn new(
        double: Option<ApiServer>,
        real: Option<Arc<KubeServer>>,
        address: SocketAddr,
        [admin, node]: [String; 2],
    ) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("admin"), admin).unwrap();
        std::fs::write(directory.path().join("node"), node).unwrap();
        Self { double, _real: real, address, directory, number: COUNT.fetch_add(1, Ordering::Relaxed) }
    }

    pub(crate) fn double_of(&self) -> &ApiServer {
        self.double.as_ref().unwrap()
    }

    /// What the server has as the name of a node of the test.
    pub(crate) fn name(&self, node: &str) -> String {
        format!("t{}-{node}", self.number)
    }

    fn prefix(&self) -> String {
        format!("t{}.example.org", self.number)
    }

    pub(crate) fn annotation(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix())
    }

    /// The credentials of `admin` or `node`.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.path().join(user)
    }

    pub(crate) fn options(&self, node: &str) -> KubeOptions {
        KubeOptions {
            kubeconfig: Some(self.kubeconfig("node")),
            api_url: None,
            annotation_prefix: self.prefix(),
            node: Some(self.name(node)),
            pod: None,
            set_condition: true,
            families: Family::ALL.to_vec(),
            silence: SILENCE,
        }
    }

    /// A daemon's handle on the store.
    pub(crate) fn open(&self, node: &str) -> Store {
        Store::Kube(KubeStore::new(self.options(node)).unwrap())
    }

    /// The same, which believes in silence for so long.
    pub(crate) fn open_with(&self, node: &str, silence: Duration) -> Store {
        Store::Kube(KubeStore::new(KubeOptions { silence, ..self.options(node) }).unwrap())
    }

    async fn admin(&self) -> Client {
        self.client("admin").await
    }

    /// As the administrator, `admin`, or a daemon, `node`.
    pub(crate) async fn client(&self, user: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user)).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// A node joins the cluster, with these podCIDRs.
    pub(crate) async fn join(&self, node: &str, pod_cidrs: &[&str]) {
        let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name(node)}, "spec": {}});
        if let Some(first) = pod_cidrs.first() {
            object["spec"] = json!({"podCIDR": first, "podCIDRs": pod_cidrs});
        }
        let request = nodes().create(&PostParams::default(), object.to_string().into_bytes()).unwrap();
        self.admin().await.request_text(request).await.unwrap();
    }

    /// kube-controller-manager gives podCIDRs to it.
    pub(crate) async fn give(&self, node: &str, pod_cidrs: &[&str]) {
        self.patch(node, json!({"spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs}})).await;
    }

    pub(crate) async fn annotate(&self, node: &str, annotations: &[(&str, &str)]) {
        let annotations: serde_json::Map<String, Value> =
            annotations.iter().map(|(name, value)| (self.annotation(name), (*value).into())).collect();
        self.patch(node, json!({"metadata": {"annotations": annotations}})).await;
    }

    async fn patch(&self, node: &str, patch: Value) {
        let request = nodes().patch(&self.name(node), &PatchParams::default(), &Patch::Merge(patch)).unwrap();
        self.admin().await.request_text(request).await.unwrap();
    }

    pub(crate) async fn leave(&self, node: &str) {
        let request = nodes().delete(&self.name(node), &DeleteParams::default()).unwrap();
        self.admin().await.request_text(request).await.unwrap();
    }

    /// The node that has this podCIDR leaves.
    pub(crate) async fn leave_by(&self, pod_cidr: &str) {
        let request = nodes().list(&ListParams::default()).unwrap();
        let list: Value = self.admin().await.request(request).await.unwrap();
        let own = self.name("");
        let mut names = list["items"].as_array().unwrap().iter().filter_map(|item| {
            let name = item["metadata"]["name"].as_str()?.strip_prefix(&own)?;
            (item["spec"]["podCIDR"] == pod_cidr).then(|| name.to_owned())
        });
        let node = names.next().unwrap_or_else(|| panic!("no node has {pod_cidr}: {list}"));
        self.leave(&node).await;
    }

    /// The object.
    pub(crate) async fn node(&self, node: &str) -> Value {
        let request = nodes().get(&self.name(node), &GetParams::default()).unwrap();
        self.admin().await.request(request).await.unwrap()
    }

    /// The annotations of this test's prefix.
    pub(crate) async fn annotations(&self, node: &str) -> Vec<(String, String)> {
        let (object, prefix) = (self.node(node).await, format!("{}/", self.prefix()));
        let annotations = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        let own = |(name, value): (&String, &Value)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), value.as_str()?.to_owned()))
        };
        annotations.iter().filter_map(own).collect()
    }

    /// The server is gone, and with it every connection; the double only.
    pub(crate) fn stop(&self) {
        self.double_of().stop();
    }

    /// It is back, at the same address, as soon as that is free.
    pub(crate) fn resume(&self) {
        let deadline = Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(self.address) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                bound => break bound.unwrap(),
            }
        };
        self.double_of().serve(listener).unwrap();
    }
}

fn nodes() -> Request {
    Request::new("/api/v1/nodes")
}

/// `authority` is the path of a certificate, or empty.
pub(crate) fn kubeconfig(server: &str, authority: &str, token: &str) -> String {
    let mut cluster = json!({"server": server});
    if !authority.is_empty() {
        cluster["certificate-authority"] = authority.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}
