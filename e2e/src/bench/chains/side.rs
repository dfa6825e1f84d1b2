//! One way to attach pods, and the bare kernel work of attaching one.

use super::Pods;
use crate::Result;
use crate::runner::{Attachment, Network, Runtime};
use kernel::detached;
use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::Netns;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How many ports of the host lead to a pod.
const PORTS: usize = 3;
/// The first of them.
const FIRST_PORT: usize = 1024;

/// One side's chain on a node of its own.
pub(super) struct Side {
    pub(super) runtime: Runtime,
    pub(super) network: Network,
}

impl Side {
    /// A chain of `plugins` on `node`, whose executables are in `executables`.
    pub(super) fn new(node: &Netns, directory: &Path, executables: &Path, plugins: Value) -> Result<Self> {
        let cache = directory.join("results");
        std::fs::create_dir_all(&cache)?;
        let network = Network::new(json!({"cniVersion": "1.0.0", "name": "net1", "plugins": plugins}))?;
        Ok(Side { runtime: Runtime { plugins: executables.to_owned(), cache, node: node.try_clone()? }, network })
    }

    /// The attachment of the pod `number` with everything that a chain may have a use for: three ports of the host, and
    /// limits of 1 Gbit/s.
    pub(super) fn attachment(id: String, number: usize, pod: &Netns) -> Attachment {
        let capabilities = json!({
            "portMappings": ports(number),
            "bandwidth": {
                "ingressRate": 1_000_000_000, "ingressBurst": 1_000_000_000,
                "egressRate": 1_000_000_000, "egressBurst": 1_000_000_000,
            },
        });
        let capabilities: Map<String, Value> = capabilities.as_object().cloned().unwrap_or_default();
        Attachment { capabilities, ..Attachment::eth0(id, pod.path()) }
    }

    pub(super) fn add(&self, attachment: &Attachment) -> Result<()> {
        self.runtime.add(&self.network, attachment).map(drop)
    }

    pub(super) fn del(&self, attachment: &Attachment) -> Result<()> {
        self.runtime.del(&self.network, attachment)
    }
}

/// `portMappings` of the pod `number`; no other pod has these.
pub(super) fn ports(number: usize) -> Value {
    let first = FIRST_PORT + number * PORTS;
    let mapping = |port: usize| json!({"hostPort": first + port, "containerPort": 80 + port, "protocol": "tcp"});
    (0..PORTS).map(mapping).collect()
}

/// A new node.
pub(super) fn node() -> Result<Netns> {
    let node = Netns::create()?;
    let mut netlink = Netlink::open_in(&node)?;
    let lo = netlink.index_of("lo")?.ok_or("no loopback device")?;
    netlink.set_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    Ok(node)
}

/// Has `measure` run `kernel/examples/attach.rs`, whose pair is removed afterwards.
pub(super) fn probe(
    node: &Netns,
    pods: &Pods,
    measure: impl FnOnce(&mut dyn FnMut() -> Result<Output>) -> Result<Output>,
) -> Result<()> {
    let pod = pods.0.first().ok_or("no namespace")?;
    let executable = std::env::var_os("ATTACH").map(PathBuf::from).ok_or("ATTACH names no probe: run `make bench`")?;
    let mut command = Command::new(&executable);
    command.env_clear().arg(pod.path()).args(["cbr0", "veth-probe", "10.88.255.254/16", "10.88.0.1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = measure(&mut || {
        let child = {
            let _inside = node.enter()?;
            command.spawn().map_err(|error| format!("{}: {error}", executable.display()))?
        };
        Ok(child.wait_with_output()?)
    })?;
    if !output.status.success() {
        return Err(format!("{}: {}", executable.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    detached::delete_link(&mut Netlink::open_in(node)?, "veth-probe")?;
    Ok(())
}
