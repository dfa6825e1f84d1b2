//! A real Kubernetes. Its programs are no Debian packages: they are looked for in `$KUBEBUILDER_ASSETS` and in `PATH`.

mod control_plane;
mod tunables;
mod worker;

pub use control_plane::ControlPlane;
pub use worker::Worker;

use crate::Result;
use crate::fabric::{Fabric, GATEWAY};
use std::path::{Path, PathBuf};
use tunables::Tunables;

/// What a whole cluster is made of, beside etcd, containerd and runc.
pub const PROGRAMS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// The programs that this machine does not have.
pub fn missing() -> Vec<&'static str> {
    PROGRAMS.into_iter().filter(|name| find(name).is_err()).collect()
}

/// Where a program is.
fn find(name: &str) -> Result<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{name} is neither in $KUBEBUILDER_ASSETS nor in PATH").into())
}

/// A cluster: its servers on the fabric's switch, its nodes each a machine on the fabric. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Kubernetes {
    // Dropped in this order.
    /// its nodes, in the order of their numbers from 1 on
    pub workers: Vec<Worker>,
    /// its servers
    pub plane: ControlPlane,
    /// its wires
    pub fabric: Fabric,
    _tunables: Tunables,
}

impl Kubernetes {
    /// A cluster with `nodes` nodes, and no pod network. Nodes get pod networks out of `pods`, a comma between the families, in
    /// /24 and /64 parts.
    pub fn start(pods: &str, nodes: u8, directory: &Path) -> Result<Self> {
        let tunables = Tunables::save();
        let fabric = Fabric::new()?;
        let plane = ControlPlane::start(fabric.network(), GATEWAY.into(), pods, &directory.join("plane"))?;
        let mut workers = Vec::new();
        for number in 1..=nodes {
            let name = format!("node{number}");
            workers.push(Worker::start(fabric.connect(&name, 10 + number)?, &plane, &directory.join(&name))?);
        }
        Ok(Kubernetes { workers, plane, fabric, _tunables: tunables })
    }
}
