//! A node: a host with the daemon, the CNI executable and pods.

use crate::fabric::{Host, UPLINK};
use crate::pod::{Pod, Sandbox, addresses, first_address};
use crate::probe::http_get;
use crate::process::{Process, Program};
use crate::runner::{Attachment, Network, Runtime};
use crate::{Result, tools};
use ipnetwork::IpNetwork;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// The daemon's health port in the node's namespace.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
/// How long a daemon may take to get ready before a start counts as failed.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long a daemon may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Whose daemon runs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// flanneld-rs
    Ours,
    /// Go flannel's flanneld
    Go,
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    /// its namespace, name and underlay address
    pub host: Host,
    /// runs CNI plugins in it
    pub runtime: Runtime,
    /// the cluster's network as this node's container runtime knows it
    pub network: Network,
    /// its pods, by name
    pub pods: Vec<Pod>,
    directory: PathBuf,
    flags: Vec<String>,
    daemon: Option<Process>,
}

impl Node {
    /// A node without daemon or pods. `directory` (absent) is for its files; `flags` are those of the daemon that all
    /// nodes share.
    pub fn new(host: Host, directory: &Path, flags: &[String]) -> Result<Self> {
        for name in ["run", "cni", "log"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let runtime = Runtime {
            plugins: tools::plugin_directory(&directory.join("bin"))?,
            cache: directory.join("cni/results"),
            node: host.network.try_clone()?,
        };
        let network = Network::new(json!({
            "cniVersion": "1.1.0",
            "name": "cbr0",
            "plugins": [{
                "type": "flannel-rs",
                "bridge": "cbr0",
                "subnetFile": directory.join("run/subnet.env"),
                "dataDir": directory.join("cni/networks"),
                "capabilities": {"portMappings": true},
            }],
        }))?;
        let network = network.with_state_in(&directory.join("cni"));
        let flags = [&["--iface".to_owned(), UPLINK.to_owned()], flags].concat();
        Ok(Node { host, runtime, network, pods: Vec::new(), directory: directory.into(), flags, daemon: None })
    }

    /// Where the node's files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Gives this node's daemons further flags, from their next start on.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// From their next start on, this node's daemons find their interface by themselves.
    pub fn find_uplink(&mut self) {
        self.flags.retain(|flag| flag != "--iface" && flag != UPLINK);
    }

    /// `flanneld-rs uninstall` with the flags of the daemon that it knows, and `args`, which leaves nothing of ours on the node
    /// but the lease; what it printed.
    pub fn uninstall(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(tools::flanneld()?);
        command.arg("uninstall").args(args);
        command.args(["--subnet-file", &self.file("run/subnet.env"), "--state-dir", &self.file("state")]);
        for pair in self.flags.windows(2).filter(|pair| matches!(pair, [flag, _] if flag == "--cni-conf-dir")) {
            command.args(pair);
        }
        let output = self.host.network.run(|| command.output())??;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let words = [output.stdout, output.stderr].concat();
        Err(format!("uninstall: {}\n{}", output.status, String::from_utf8_lossy(&words)).into())
    }

    /// Starts our daemon without waiting for it.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.start_daemon_of(Maker::Ours)
    }

    /// Starts a daemon without waiting for it, with the same files and flags, as far as both know them.
    pub fn start_daemon_of(&mut self, maker: Maker) -> Result<()> {
        let program = match maker {
            Maker::Ours => Program::new("flanneld-rs", tools::flanneld()?)
                .args(["--node-name", &self.host.name])
                .args(["--host-ports-dir", &self.file("cni/host-ports")])
                .args(["--attachments-dir", &self.file("cni/attachments")])
                .args(["--state-dir", &self.file("state")]),
            Maker::Go => Program::new("go-flanneld", tools::go_flanneld()?.ok_or("there is no Go flanneld")?),
        };
        let daemon = program
            .args(["--subnet-file", &self.file("run/subnet.env")])
            .args(["--healthz-ip", &HEALTH.ip().to_string(), "--healthz-port", &HEALTH.port().to_string()])
            .args(&self.flags)
            .env("WIREGUARD_KEY_FILE", self.file("wireguard.key"))
            .env("NODE_NAME", &self.host.name)
            .network(&self.host.network)
            .start(&self.directory.join("log"))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Waits until the daemon says that the node is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let name = &self.host.name;
        let (daemon, network) = (self.daemon.as_mut().ok_or("no daemon runs")?, &self.host.network);
        daemon.until(READY_LIMIT, || match network.run(|| http_get(HEALTH, "/readyz"))?? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("/readyz of {name} answers {status} {body}").into()),
        })
    }

    /// GET of a path of the daemon's health server: status and body.
    pub fn health(&self, path: &str) -> Result<(u16, String)> {
        self.host.network.run(|| http_get(HEALTH, path))?
    }

    /// Kills the daemon as the kernel would if memory ran out.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.take().ok_or("no daemon runs")?.kill()
    }

    /// Ends the daemon as an init system would.
    pub fn stop_daemon(&mut self) -> Result<ExitStatus> {
        self.daemon.take().ok_or("no daemon runs")?.stop(STOP_LIMIT)
    }

    /// Waits for a daemon that is expected to end by itself: its status and its last words.
    pub fn daemon_end(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let mut daemon = self.daemon.take().ok_or("no daemon runs")?;
        let status = daemon.wait(limit)?;
        Ok((status, daemon.last_words()))
    }

    /// The end of the daemon's log.
    pub fn daemon_log(&self) -> String {
        self.daemon.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// The running daemon's process number.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// The variables of the subnet file that the daemon wrote.
    pub fn subnet_file(&self) -> Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(self.directory.join("run/subnet.env"))?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.into(), value.into()))
            .collect())
    }

    /// The subnets in that file, IPv4 first, with the gateway's address.
    pub fn subnets(&self) -> Result<Vec<IpNetwork>> {
        let file = self.subnet_file()?;
        let texts = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(|name| file.get(name));
        texts.map(|text| text.parse().map_err(|error| format!("{text}: {error}").into())).collect()
    }

    /// What the node's lease is called in the store, as flannel names it.
    pub fn lease_key(&self) -> Result<String> {
        let parts = self
            .subnets()?
            .iter()
            .map(|subnet| format!("{}-{}", subnet.network(), subnet.prefix()))
            .collect::<Vec<_>>();
        Ok(parts.join("&"))
    }

    /// Starts a pod and attaches it.
    pub fn add_pod(&mut self, name: &str) -> Result<&Pod> {
        let sandbox = Sandbox::start(name, &self.directory.join("log"))?;
        let attachment = Attachment::eth0(format!("{name}-sandbox"), sandbox.path());
        let result = self.runtime.add(&self.network, &attachment)?;
        let (address, addresses) = (first_address(&result)?, addresses(&result)?);
        self.pods.push(Pod { name: name.into(), address, addresses, attachment, sandbox });
        Ok(self.pods.last().ok_or("no pod")?)
    }

    /// Detaches a pod and ends it.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let position = self.pods.iter().position(|pod| pod.name == name).ok_or_else(|| format!("no pod {name}"))?;
        let pod = self.pods.remove(position);
        self.runtime.del(&self.network, &pod.attachment)
    }
}
