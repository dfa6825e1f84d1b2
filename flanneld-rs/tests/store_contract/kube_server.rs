//! A real kube-apiserver on a real etcd, of the test's own, where there is one: in `$KUBEBUILDER_ASSETS` or in `$PATH`. Its
//! users are an administrator, and a daemon with exactly what flannel's ClusterRole allows.

use crate::authority::Authority;
use crate::etcd_server::{EtcdServer, free_ports};
use crate::kube_api::kubeconfig;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::params::PostParams;
use kube::core::request::Request;
use serde_json::json;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

const API: &str = "/apis/rbac.authorization.k8s.io/v1";

pub(crate) struct KubeServer {
    process: Child,
    port: u16,
    authority: Authority,
    _etcd: EtcdServer,
}

impl KubeServer {
    /// One for all tests that run at the moment. None: there is no kube-apiserver here, which is said aloud.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<KubeServer>> = Mutex::new(Weak::new());
        let Some(executable) = find() else {
            static TOLD: Once = Once::new();
            // Not by a macro: those are captured where a test succeeds.
            TOLD.call_once(|| {
                let text =
                    "\n*** NOT TESTED on a real API server: no kube-apiserver in $KUBEBUILDER_ASSETS or $PATH ***\n";
                std::io::stderr().write_all(text.as_bytes()).unwrap();
            });
            return None;
        };
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        Some(shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(executable));
            *shared = Arc::downgrade(&server);
            server
        }))
    }

    // The test starts the real server; the product starts nothing.
    #[allow(clippy::disallowed_methods)]
    fn start(executable: PathBuf) -> Self {
        let (etcd, authority) = (EtcdServer::start(), Authority::new());
        let [port] = free_ports();
        let file = |name: &str| authority.file(name).display().to_string();
        std::fs::write(file("tokens"), "admin,admin,admin,system:masters\nnode,flannel,flannel\n").unwrap();
        let log = std::fs::File::create(file("log")).unwrap();
        let mut command = Command::new(executable);
        command
            .args([
                format!("--etcd-servers=http://127.0.0.1:{}", etcd.port()),
                format!("--secure-port={port}"),
                format!("--tls-cert-file={}", file("server.pem")),
                format!("--tls-private-key-file={}", file("server.key")),
                format!("--service-account-key-file={}", file("server.pem")),
                format!("--service-account-signing-key-file={}", file("server.key")),
                format!("--token-auth-file={}", file("tokens")),
                format!("--cert-dir={}", file("certificates")),
            ])
            .args(["--bind-address=127.0.0.1", "--service-account-issuer=https://kubernetes.default.svc"])
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/24"])
            .args(["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { process, port, authority, _etcd: etcd };
        server.wait();
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn kubeconfig(&self, token: &str) -> String {
        let authority = self.authority.file("ca.pem").display().to_string();
        kubeconfig(&format!("https://{}", self.address()), &authority, token)
    }

    /// Waits until it serves, and lets the daemon do what flannel may.
    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig("admin")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            config.default_retry = false;
            let client = Client::try_from(config).unwrap();
            let get = |path: &str| axum::http::Request::get(path).body(Vec::new()).unwrap();
            while client.request_text(get("/readyz")).await.is_err() {
                let exited = self.process.try_wait().unwrap();
                if exited.is_some() || Instant::now() > deadline {
                    let log = std::fs::read_to_string(self.authority.file("log")).unwrap_or_default();
                    panic!("kube-apiserver did not start ({exited:?}):\n{log}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let rule =
                |resource: &str, verbs: &[&str]| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
            let role = json!({
                "metadata": {"name": "flannel"},
                "rules": [
                    rule("pods", &["get"]),
                    rule("nodes", &["get", "list", "watch"]),
                    rule("nodes/status", &["patch"]),
                ],
            });
            let binding = json!({
                "metadata": {"name": "flannel"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
                "subjects": [{"kind": "User", "name": "flannel", "apiGroup": "rbac.authorization.k8s.io"}],
            });
            for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
                let request = Request::new(format!("{API}/{kind}"));
                let request = request.create(&PostParams::default(), object.to_string().into_bytes()).unwrap();
                client.request_text(request).await.unwrap();
            }
        });
    }
}

impl Drop for KubeServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says aloud what could not be tested. Not by a macro: those are captured where a test succeeds.
pub(crate) fn not_tested(what: &str) {
    std::io::stderr().write_all(format!("\n*** NOT TESTED: {what} ***\n").as_bytes()).unwrap();
}

fn find() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").into_iter();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = assets.map(PathBuf::from).chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join("kube-apiserver")).find(|file| file.is_file())
}
