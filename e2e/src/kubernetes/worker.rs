//! A node: containerd and kubelet on a machine of their own.

use super::control_plane::SERVICE;
use super::{ControlPlane, find};
use crate::containerd::Containerd;
use crate::fabric::Host;
use crate::process::{Process, Program};
use crate::{Result, oracle, probe};
use kernel::netns::Netns;
use serde_json::json;
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// A host that runs pods for a [`ControlPlane`].
#[derive(Debug)]
pub struct Worker {
    /// its name and its network
    pub host: Host,
    // Dropped in this order.
    kubelet: Option<Process>,
    /// what runs its containers
    pub containerd: Containerd,
    directory: PathBuf,
    config: PathBuf,
}

impl Worker {
    /// Makes `host` a node; it has no pod network yet.
    pub fn start(host: Host, plane: &ControlPlane, directory: &Path) -> Result<Self> {
        let containerd = Containerd::start_bare(&host.network, &directory.join("containerd"))?;
        let config = plane.kubeconfig(&host.name)?;
        reach_the_api_server(&host, plane)?;
        let mut worker = Worker { host, kubelet: None, containerd, directory: directory.into(), config };
        worker.resume()?;
        Ok(worker)
    }

    /// Starts the kubelet (again).
    pub fn resume(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        // Nothing that concerns other nodes on this kernel: no cgroups of its own, no eviction for want of space.
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
            "failSwapOn": false, "failCgroupV1": false, "oomScoreAdj": 0,
            "containerRuntimeEndpoint": self.containerd.endpoint(),
            "podLogsDir": file("pod-logs"), "volumePluginDir": file("volume-plugins"),
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100, "makeIPTablesUtilChains": false,
            "nodeStatusUpdateFrequency": "2s",
        });
        fs::write(self.directory.join("kubelet.json"), config.to_string())?;
        let addresses = format!("{},{}", self.host.address, self.host.address_like(Ipv6Addr::LOCALHOST.into()));
        let kubelet = Program::new("kubelet", find("kubelet")?)
            .args(["--hostname-override", &self.host.name, "--node-ip", &addresses])
            .args(["--config", &file("kubelet.json"), "--root-dir", &file("kubelet"), "--cert-dir", &file("pki")])
            .args(["--kubeconfig".as_ref(), self.config.as_os_str()])
            .network(&self.host.network)
            .machine(self.containerd.machine())
            .start(&self.directory)?;
        self.kubelet = Some(kubelet);
        Ok(())
    }

    /// Kills the kubelet; pods live on.
    pub fn kill(&mut self) -> Result<()> {
        self.kubelet.take().ok_or("the kubelet does not run")?.kill()
    }

    /// The end of the kubelet's log.
    pub fn log(&self) -> String {
        self.kubelet.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// The network namespace of a pod's sandbox.
    pub fn sandbox(&self, pod: &str) -> Result<Netns> {
        let filter = format!(r#"labels."io.kubernetes.pod.name"=={pod},labels."io.cri-containerd.kind"==sandbox"#);
        let ids = self.containerd.ctr(&["containers", "list", "--quiet", &filter])?;
        let tasks = self.containerd.ctr(&["tasks", "list"])?;
        let of_it = |line: &&str| ids.lines().any(|id| line.starts_with(id)) && line.contains("RUNNING");
        let task = tasks.lines().find(of_it).ok_or_else(|| format!("no sandbox of {pod} runs:\n{ids}\n{tasks}"))?;
        let process = task.split_whitespace().nth(1).ok_or("a task without a process")?;
        // The number is one of the machine's.
        Ok(Netns::open(&self.containerd.file(format!("/proc/{process}/ns/net")))?)
    }

    /// Serves the probes in a pod's sandbox, since what runs in the pod does nothing, as long as we live.
    pub fn serve_probes(&self, pod: &str) -> Result<Netns> {
        let network = self.sandbox(pod)?;
        network.run(probe::serve)??;
        Ok(network)
    }
}

/// What kube-proxy would do for the first service of all.
fn reach_the_api_server(host: &Host, plane: &ControlPlane) -> Result<()> {
    for command in [
        "add table ip services".to_owned(),
        "add chain ip services output { type nat hook output priority -100 ; }".to_owned(),
        format!("add rule ip services output ip daddr {SERVICE} tcp dport 443 dnat to {}", plane.socket()),
    ] {
        oracle::nft(&host.network, &command)?;
    }
    Ok(())
}
