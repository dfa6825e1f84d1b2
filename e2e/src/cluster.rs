//! A whole cluster: a fabric, a lease store, nodes.

use crate::Result;
use crate::api_server::ApiServer;
use crate::etcd::Etcd;
use crate::fabric::{Fabric, GATEWAY, Host};
use crate::node::Node;
use crate::pod::Pod;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Under which the cluster's keys in etcd are: flannel's default.
pub const ETCD_PREFIX: &str = "/coreos.com/network";

/// Where the API server is reached, on the switch.
const API: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 6443);

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// encapsulated
    Vxlan,
    /// routed, the peer node as the next hop
    HostGw,
    /// through the daemons, in UDP
    Udp,
    /// encrypted
    WireGuard,
}

/// Where leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// the daemon's own, a directory
    File,
    /// a real etcd
    Etcd,
    /// Kubernetes: an API server in memory
    Kube,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "vxlan" => Ok(Backend::Vxlan),
            "host-gw" => Ok(Backend::HostGw),
            "udp" => Ok(Backend::Udp),
            "wireguard" => Ok(Backend::WireGuard),
            _ => Err(format!("unknown backend {text:?}: vxlan, host-gw, udp or wireguard")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Udp => "udp",
            Backend::WireGuard => "wireguard",
        })
    }
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "file" => Ok(Store::File),
            "etcd" => Ok(Store::Etcd),
            "kube" => Ok(Store::Kube),
            _ => Err(format!("unknown store {text:?}: file, etcd or kube")),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Store::File => "file",
            Store::Etcd => "etcd",
            Store::Kube => "kube",
        })
    }
}

/// Which families pods have addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4
    V4,
    /// IPv6
    V6,
    /// both
    Dual,
}

impl Families {
    /// The families of a network configuration.
    fn of(network: &Value) -> Self {
        match (network["EnableIPv4"] == false, network["EnableIPv6"] == true) {
            (true, _) => Families::V6,
            (false, true) => Families::Dual,
            (false, false) => Families::V4,
        }
    }

    /// What a cluster gives to its node of this number.
    pub fn pod_cidrs(self, number: usize) -> Vec<String> {
        let (v4, v6) = (format!("10.42.{number}.0/24"), format!("fd42:0:0:{number:x}::/64"));
        match self {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Dual => vec![v4, v6],
        }
    }

    /// The members of flannel's network configuration for 10.42.0.0/16 in /24 and fd42::/48 in /64 subnets.
    fn network(self) -> Value {
        match self {
            Families::V4 => json!({"Network": "10.42.0.0/16", "SubnetLen": 24}),
            Families::V6 => json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd42::/48"}),
            Families::Dual => {
                json!({"Network": "10.42.0.0/16", "SubnetLen": 24, "EnableIPv6": true, "IPv6Network": "fd42::/48"})
            }
        }
    }
}

/// What kind of cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// how packets travel
    pub backend: Backend,
    /// where leases are kept
    pub store: Store,
    /// the network configuration; where it names no backend itself, `backend` with its defaults
    pub network: Value,
    /// the network configuration is kept in the file store, and not in a file that the daemons' flags name; etcd has it in
    /// any case
    pub stored_config: bool,
    /// further flags of every daemon
    pub flags: Vec<String>,
}

impl Settings {
    /// 10.42.0.0/16 in /24 subnets, with masquerading.
    pub fn new(backend: Backend, store: Store) -> Self {
        Settings {
            backend,
            store,
            network: Families::V4.network(),
            stored_config: false,
            flags: vec!["--ip-masq".into()],
        }
    }

    /// The same with pods of these families.
    #[must_use]
    pub fn with(self, families: Families) -> Self {
        Settings { network: families.network(), ..self }
    }

    /// flannel's net-conf.json.
    pub fn net_conf(&self) -> Value {
        let mut config = self.network.clone();
        if config.get("Backend").is_some() {
            return config;
        }
        config["Backend"] = match self.backend {
            Backend::Vxlan => json!({"Type": "vxlan", "VNI": 1}),
            Backend::HostGw => json!({"Type": "host-gw"}),
            Backend::Udp => json!({"Type": "udp"}),
            Backend::WireGuard => json!({"Type": "wireguard"}),
        };
        config
    }
}

/// A running cluster. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Cluster {
    /// its nodes
    pub nodes: Vec<Node>,
    /// the etcd that keeps the leases, if that is the store
    pub etcd: Option<Etcd>,
    /// the API server that has the nodes, if that is the store
    pub api: Option<ApiServer>,
    fabric: Fabric,
    directory: PathBuf,
    /// where the network configuration is: a file, or else etcd
    config: Option<PathBuf>,
    flags: Vec<String>,
    families: Families,
    /// hosts connected so far, nodes or not
    hosts: u8,
}

impl Cluster {
    /// A fabric and a lease store, without nodes, with its files in `directory`.
    pub fn new(settings: &Settings, directory: &Path) -> Result<Self> {
        let fabric = Fabric::new()?;
        let net_conf = settings.net_conf().to_string();
        let (mut flags, mut api) = (Vec::new(), None);
        let (etcd, config) = match settings.store {
            Store::File => {
                let store = directory.join("store");
                fs::create_dir_all(&store)?;
                let config =
                    if settings.stored_config { store.join("config") } else { directory.join("net-conf.json") };
                if !settings.stored_config {
                    flags.extend(["--net-config-path".into(), config.display().to_string()]);
                }
                flags.extend(["--store-dir".into(), store.display().to_string()]);
                (None, Some(config))
            }
            // The configuration is there as well: Go flannel looks for it nowhere else.
            Store::Etcd => {
                let etcd = Etcd::start(fabric.network(), GATEWAY.into(), &directory.join("etcd"))?;
                flags.extend(["--etcd-endpoints".into(), etcd.endpoint()]);
                (Some(etcd), None)
            }
            Store::Kube => {
                let config = directory.join("net-conf.json");
                flags.extend(["--kube-subnet-mgr".into(), "--net-config-path".into(), config.display().to_string()]);
                flags.push(format!("--kube-api-url=http://{API}"));
                api = Some(ApiServer::new());
                (None, Some(config))
            }
        };
        flags.extend(settings.flags.iter().cloned());
        let directory = directory.into();
        let families = Families::of(&settings.network);
        let cluster = Cluster { nodes: Vec::new(), etcd, api, fabric, directory, config, flags, families, hosts: 0 };
        cluster.configure(&net_conf)?;
        if cluster.api.is_some() {
            cluster.resume_api()?;
        }
        Ok(cluster)
    }

    /// Makes the API server reachable (again).
    pub fn resume_api(&self) -> Result<()> {
        let listener = self.fabric.network().run(|| TcpListener::bind(API))??;
        self.api()?.serve(listener)?;
        Ok(())
    }

    /// The API server.
    pub fn api(&self) -> Result<&ApiServer> {
        self.api.as_ref().ok_or_else(|| "there is no API server".into())
    }

    /// Exchanges the network configuration, as an editor does or `etcdctl put`.
    pub fn configure(&self, text: &str) -> Result<()> {
        match (&self.config, &self.etcd) {
            (Some(path), _) => {
                let draft = path.with_extension("draft");
                fs::write(&draft, text)?;
                Ok(fs::rename(&draft, path)?)
            }
            (None, Some(etcd)) => etcd.put(&format!("{ETCD_PREFIX}/config"), text),
            (None, None) => Err("there is no place for a configuration".into()),
        }
    }

    /// A cluster of `nodes` ready nodes with `pods` pods each.
    pub fn start(settings: &Settings, directory: &Path, nodes: usize, pods: usize) -> Result<Self> {
        let mut cluster = Cluster::new(settings, directory)?;
        for _ in 0..nodes {
            cluster.add_node()?.start_daemon()?;
        }
        for node in &mut cluster.nodes {
            node.wait_ready()?;
            for number in 1..=pods {
                node.add_pod(&format!("{}-pod{number}", node.host.name))?;
            }
        }
        Ok(cluster)
    }

    /// Connects another node; its daemon is not started.
    pub fn add_node(&mut self) -> Result<&mut Node> {
        let number = self.nodes.len() + 1;
        let name = format!("node{number}");
        let host = self.connect(&name)?;
        if let Some(api) = &self.api {
            let cidrs = self.families.pod_cidrs(number);
            api.put_node(&name, &cidrs.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let node = Node::new(host, &self.directory.join(&name), &self.flags)?;
        self.nodes.push(node);
        self.nodes.last_mut().ok_or_else(|| "no node".into())
    }

    /// Takes a node's network card out and puts a new one in.
    pub fn replace_cable(&self, node: usize) -> Result<()> {
        self.fabric.replace_cable(&self.nodes.get(node).ok_or("no such node")?.host)
    }

    /// Writes a lease into the store as another node would, in one step; None: takes it out.
    pub fn put_lease(&self, key: &str, lease: Option<&Value>) -> Result<()> {
        match (&self.etcd, lease) {
            (Some(etcd), Some(lease)) => etcd.put(&format!("{ETCD_PREFIX}/subnets/{key}"), &lease.to_string()),
            (Some(etcd), None) => etcd.delete(&format!("{ETCD_PREFIX}/subnets/{key}")),
            (None, Some(lease)) => {
                let written = self.leases().join("../.by-hand");
                fs::write(&written, lease.to_string())?;
                Ok(fs::rename(written, self.leases().join(key))?)
            }
            (None, None) => Ok(fs::remove_file(self.leases().join(key))?),
        }
    }

    /// Where the file store keeps the leases.
    pub fn leases(&self) -> PathBuf {
        self.directory.join("store/subnets")
    }

    /// Connects a host that is no node: the world outside the cluster.
    pub fn connect(&mut self, name: &str) -> Result<Host> {
        self.hosts = self.hosts.checked_add(1).filter(|hosts| *hosts < 200).ok_or("the fabric is full")?;
        self.fabric.connect(name, 10 + self.hosts)
    }

    /// The wires between the nodes.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }
}
