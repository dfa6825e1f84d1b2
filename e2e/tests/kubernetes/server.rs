//! The manifest on a real API server, where there is one ($KUBEBUILDER_ASSETS, $PATH) and a kubectl: it is applied, checked as
//! strictly as the server does, and the DaemonSet's pod runs with its service account, by whose role it may do its work.

use crate::kubelet::{Cluster, Kubelet, text};
use crate::node::{Node, config_maps};
use crate::objects::{OVERLAYS, conf};
use e2e::etcd::Etcd;
use e2e::eventually;
use e2e::process::{Process, Program};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 6443);

fn find(name: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").into_iter().map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets.chain(std::env::split_paths(&path)).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// An API server on the node, with an administrator.
struct Server<'a> {
    node: &'a Node,
    kubectl: PathBuf,
    // Dropped in this order.
    process: Process,
    _etcd: Etcd,
}

#[allow(clippy::disallowed_methods, reason = "certificates of the test's own, and kubectl")]
impl<'a> Server<'a> {
    fn start(node: &'a Node, executable: PathBuf, kubectl: PathBuf) -> Self {
        let directory = node.work.path();
        let etcd = Etcd::start(&node.network, Ipv4Addr::LOCALHOST.into(), &directory.join("etcd")).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(directory, &format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.crt"));
        let files = "-keyout server.key -out server.crt -CA ca.crt -CAkey ca.key";
        let names = format!("-addext subjectAltName=IP:{} -addext basicConstraints=critical,CA:FALSE", ADDRESS.ip());
        openssl(directory, &format!("req -x509 {key} -subj /CN=server {files} {names}"));
        std::fs::write(directory.join("tokens"), "admin,admin,admin,system:masters\n").unwrap();
        let file = |name: &str| directory.join(name).display().to_string();
        let process = Program::new("kube-apiserver", executable)
            .args([
                format!("--etcd-servers={}", etcd.endpoint()),
                format!("--tls-cert-file={}", file("server.crt")),
                format!("--tls-private-key-file={}", file("server.key")),
                format!("--service-account-key-file={}", file("server.crt")),
                format!("--service-account-signing-key-file={}", file("server.key")),
                format!("--token-auth-file={}", file("tokens")),
                format!("--cert-dir={}", file("certificates")),
                format!("--bind-address={}", ADDRESS.ip()),
                format!("--secure-port={}", ADDRESS.port()),
            ])
            .args(["--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none"])
            .network(&node.network)
            .start(directory)
            .unwrap();
        let mut server = Server { node, kubectl, process, _etcd: etcd };
        let mut ready = server.command(&["get", "--raw", "/readyz"]);
        let ask = || {
            let output = node.network.run(|| ready.output())??;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
        };
        server.process.until(LIMIT, ask).unwrap();
        server
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        let authority = self.node.work.path().join("ca.crt");
        command.arg(format!("--server=https://{ADDRESS}")).arg("--token=admin").args(args);
        command.arg(format!("--certificate-authority={}", authority.display()));
        // Nothing of the machine's own, such as a configuration or a cache.
        command.env("KUBECONFIG", "/dev/null").env("HOME", self.node.work.path());
        command
    }

    /// kubectl with these arguments; what it printed.
    fn kubectl(&self, args: &[&str]) -> String {
        let mut command = self.command(args);
        let output = self.node.network.run(|| command.output()).unwrap().unwrap();
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn get(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "--output=json"], args].concat())).unwrap()
    }

    /// What a kubelet mounts into pods of a service account.
    fn account(&self, namespace: &str, name: &str) -> PathBuf {
        let directory = self.node.work.make("account").unwrap();
        let token = self.kubectl(&["--namespace", namespace, "create", "token", name]);
        std::fs::write(directory.join("token"), token.trim()).unwrap();
        std::fs::write(directory.join("namespace"), namespace).unwrap();
        std::fs::copy(self.node.work.path().join("ca.crt"), directory.join("ca.crt")).unwrap();
        directory
    }
}

#[allow(clippy::disallowed_methods, reason = "certificates of the test's own")]
fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As the server has the node.
fn condition(node: &Value, kind: &str) -> Option<String> {
    let conditions = node["status"]["conditions"].as_array()?;
    Some(text(&conditions.iter().find(|condition| condition["type"] == kind)?["status"]))
}

#[test]
fn a_real_api_server_takes_it_and_lets_the_daemon_work() {
    let (Some(executable), Some(kubectl)) = (find("kube-apiserver"), find("kubectl")) else {
        e2e::not_tested(
            "the manifest on a real API server: no kube-apiserver and kubectl in $KUBEBUILDER_ASSETS or $PATH",
        );
        return;
    };
    let node = Node::new();
    let server = Server::start(&node, executable, kubectl);
    let manifest = conf().join("kubernetes/flanneld-rs.yaml").display().to_string();
    server.kubectl(&["apply", "--validate=strict", "--filename", &manifest]);
    for overlay in OVERLAYS {
        let overlay = conf().join("kustomize").join(overlay).display().to_string();
        server.kubectl(&["apply", "--validate=strict", "--dry-run=server", "--kustomize", &overlay]);
    }
    let spec = json!({"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": spec});
    let file = node.work.path().join("node.json");
    std::fs::write(&file, object.to_string()).unwrap();
    server.kubectl(&["create", "--filename", file.to_str().unwrap()]);

    // From here on, what the server has is what counts.
    let daemon_set = server.get(&["--namespace=kube-flannel", "daemonset", "kube-flannel-ds"]);
    let map = server.get(&["--namespace=kube-flannel", "configmap", "kube-flannel-cfg"]);
    let pod = &daemon_set["spec"]["template"]["spec"];
    let mut kubelet: Kubelet<'_> = node.kubelet();
    let account = server.account("kube-flannel", pod["serviceAccountName"].as_str().unwrap());
    kubelet.cluster = Some(Cluster { address: ADDRESS, account });
    let maps: BTreeMap<String, Value> = config_maps(&[map]);
    let daemon = kubelet.start("daemon", pod, &maps).unwrap();
    node.until_ready(&kubelet, &daemon);
    let told = eventually(LIMIT, || {
        let node = server.get(&["node", "node1"]);
        if condition(&node, "NetworkUnavailable").as_deref() == Some("False") {
            Ok(node)
        } else {
            Err(node.to_string().into())
        }
    });
    let told = told.unwrap_or_else(|error| panic!("{error}\n{}", kubelet.log(&daemon)));
    let annotation = |name: &str| text(&told["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")]);
    assert_eq!((annotation("backend-type"), annotation("public-ip")), ("vxlan".to_owned(), "192.0.2.1".to_owned()));
    let ready = || if kubelet.network_is_ready() { Ok(()) } else { Err("NetworkReady is false".into()) };
    eventually(LIMIT, ready).unwrap();
    let workload = kubelet.sandbox("web", &[], false).unwrap();
    let address = kubelet.address(&workload);
    assert!(address.starts_with("10.244.7."), "{address}");
    kubelet.remove(&workload);
    kubelet.remove(&daemon);
}
