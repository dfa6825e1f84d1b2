//! The API server with its etcd, the controllers and the scheduler.

use super::find;
use crate::Result;
use crate::etcd::Etcd;
use crate::process::{Process, Program};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// On two busy cores.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The port of the API server.
const PORT: u16 = 6443;
/// The service networks; the first address is the API server's for pods.
const SERVICES: &str = "10.96.0.0/16,fd96::/112";
/// That address.
pub(super) const SERVICE: &str = "10.96.0.1";

/// The servers of a cluster, all in one network namespace.
#[derive(Debug)]
pub struct ControlPlane {
    network: Netns,
    address: IpAddr,
    directory: PathBuf,
    // Dropped in this order.
    scheduler: Option<Process>,
    controllers: Option<Process>,
    server: Option<Process>,
    etcd: Etcd,
}

impl ControlPlane {
    /// Starts them at `address` of `network`; nodes get pod networks out of `pods`, a comma between the families, in /24 and
    /// /64 parts.
    pub fn start(network: &Netns, address: IpAddr, pods: &str, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let etcd = Etcd::start(network, address, &directory.join("etcd"))?;
        let mut plane = ControlPlane {
            network: network.try_clone()?,
            address,
            directory: directory.into(),
            scheduler: None,
            controllers: None,
            server: None,
            etcd,
        };
        let key = plane.file("accounts.key");
        let made = Command::new("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
            .arg(&key)
            .output()
            .map_err(|error| format!("openssl: {error}"))?;
        if !made.status.success() {
            return Err(format!("openssl: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let mut tokens = fs::File::create(plane.file("tokens.csv"))?;
        writeln!(tokens, "admin,admin,admin,system:masters")?;
        for number in 1..10 {
            writeln!(tokens, "node{number},system:node:node{number},node{number},system:nodes")?;
        }
        plane.resume()?;
        let config = plane.kubeconfig("admin")?;
        plane.controllers = Some(plane.client(
            "kube-controller-manager",
            &config,
            &[
                ("--cluster-cidr", pods.into()),
                ("--allocate-node-cidrs", "true".into()),
                ("--node-cidr-mask-size-ipv4", "24".into()),
                ("--node-cidr-mask-size-ipv6", "64".into()),
                ("--service-cluster-ip-range", SERVICES.into()),
                ("--service-account-private-key-file", key.display().to_string()),
                ("--root-ca-file", plane.authority().display().to_string()),
                ("--node-monitor-grace-period", "20s".into()),
            ],
        )?);
        plane.scheduler = Some(plane.client("kube-scheduler", &config, &[])?);
        Ok(plane)
    }

    /// Starts the API server (again) and waits until it serves.
    pub fn resume(&mut self) -> Result<()> {
        let key = self.file("accounts.key").display().to_string();
        let options = [
            ("--etcd-servers", self.etcd.endpoint()),
            ("--bind-address", self.address.to_string()),
            ("--advertise-address", self.address.to_string()),
            ("--secure-port", PORT.to_string()),
            ("--cert-dir", self.file("certificates").display().to_string()),
            ("--service-cluster-ip-range", SERVICES.into()),
            ("--token-auth-file", self.file("tokens.csv").display().to_string()),
            ("--authorization-mode", "Node,RBAC".into()),
            ("--service-account-issuer", "https://kubernetes.default.svc".into()),
            ("--service-account-key-file", key.clone()),
            ("--service-account-signing-key-file", key),
        ];
        let server = Program::new("kube-apiserver", find("kube-apiserver")?)
            .args(options.iter().map(|(name, value)| format!("{name}={value}")))
            .network(&self.network)
            .start(&self.directory)?;
        let mut server = server;
        let config = self.kubeconfig("admin");
        server.until(START_LIMIT, || {
            config.as_ref().map_err(ToString::to_string)?;
            self.kubectl(&["get", "--raw", "/readyz"])
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Kills the API server; etcd keeps what it knew.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().ok_or("the API server does not run")?.kill()
    }

    /// The API server's address and port.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }

    /// Where the API server is.
    pub fn url(&self) -> String {
        format!("https://{}", self.socket())
    }

    /// Certificates by which clients know the API server.
    pub fn authority(&self) -> PathBuf {
        self.file("certificates/apiserver.crt")
    }

    /// Writes a client configuration for the user with this token: `admin`, or the name of a node.
    pub fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url(), "certificate-authority": self.authority()}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let file = self.file(&format!("{token}.kubeconfig"));
        fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// Runs kubectl as the administrator; what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    /// What there is of one kind in all namespaces, as JSON; `what` may name one object.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output", "json"], what].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with(&["apply", "--filename", "-"], manifests).map(|_| ())
    }

    fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(find("kubectl")?);
        // Its cache of what the server knows would be one for all servers that were ever at this address.
        command.arg("--kubeconfig").arg(self.file("admin.kubeconfig")).arg("--cache-dir").arg(self.file("cache"));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.network.run(|| command.spawn())??;
        child.stdin.take().ok_or("no pipe")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        Err(format!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into())
    }

    fn client(&self, name: &str, config: &Path, options: &[(&str, String)]) -> Result<Process> {
        Program::new(name, find(name)?)
            .args(options.iter().map(|(name, value)| format!("{name}={value}")))
            .args(["--kubeconfig".as_ref(), config.as_os_str()])
            .args(["--leader-elect=false"])
            .network(&self.network)
            .start(&self.directory)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
