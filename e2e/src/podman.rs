//! A real podman with its CNI backend in a node, on a machine of its own: its containers end with us, and what it and the
//! plugins keep in `/run` and `/var/lib/cni` is seen by nobody else.

use crate::pod::start_holder;
use crate::process::Process;
use crate::{Result, pause, tools};
use kernel::netns::Netns;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// podman on one machine.
#[derive(Debug)]
pub struct Podman {
    executable: PathBuf,
    network: Netns,
    directory: PathBuf,
    machine: Process,
}

impl Podman {
    /// Sets one up in `network` that keeps its files in `directory` and runs the CNI plugins in `plugins`, for which there
    /// is no other, and imports the pause image.
    pub fn new(network: &Netns, directory: &Path, plugins: &Path) -> Result<Self> {
        let executable = tools::from_package("/usr/bin/podman", "podman")?;
        tools::from_package("/usr/sbin/runc", "runc")?;
        fs::create_dir_all(directory.join("net.d"))?;
        fs::write(directory.join("containers.conf"), config(directory, plugins))?;
        let mut machine = vec!["machine", "--tmpfs", "/run", "--tmpfs", "/var/lib/cni"];
        machine.extend(tools::without_others(plugins));
        let machine = start_holder("podman-machine", &machine, directory)?;
        let podman = Podman { executable, network: network.try_clone()?, directory: directory.into(), machine };
        podman.run(&["load", "--input", &pause::image(directory)?.display().to_string()])?;
        Ok(podman)
    }

    /// Runs a podman command; what it printed, without the line end.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(tools::helper()?)
            .arg("run")
            .arg("--network")
            .arg(self.network.path())
            .args(["--machine", &self.machine.pid().to_string(), "--"])
            .arg(&self.executable)
            .arg("--root")
            .arg(self.directory.join("storage"))
            .args(["--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp", "--storage-driver", "vfs"])
            .args(args)
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?.trim_end().to_owned());
        }
        Err(format!("podman {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
    }

    /// Starts a container that does nothing.
    pub fn start(&self, name: &str, options: &[&str]) -> Result<()> {
        self.run(&[&["run", "--detach", "--name", name], options, &[pause::IMAGE]].concat()).map(|_| ())
    }

    /// One value of `podman inspect`, as a Go template names it.
    pub fn inspect(&self, container: &str, value: &str) -> Result<String> {
        self.run(&["inspect", container, "--format", &format!("{{{{{value}}}}}")])
    }

    /// The network namespace of a running container.
    pub fn network_of(&self, container: &str) -> Result<Netns> {
        let path = self.inspect(container, ".NetworkSettings.SandboxKey")?;
        Ok(Netns::open(&self.file(&path))?)
    }

    /// A path of the machine as we see it.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.machine.pid()))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Its containers end with the machine; the control groups that podman made for them do not. They go only if they are
        // empty: a podman of the system has some of the same names.
        let _ = self.machine.kill();
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for group in controllers.chain([root.to_owned()]).map(|controller| controller.join("libpod_parent")) {
            let _ = fs::remove_dir(group.join("conmon"));
            let _ = fs::remove_dir(group);
        }
    }
}

/// The limits are stated because runc may not raise them without CAP_SYS_RESOURCE; the journal and systemd's control groups
/// are not to be had in a container.
fn config(directory: &Path, plugins: &Path) -> String {
    let (directory, plugins) = (directory.display(), plugins.display());
    format!(
        r#"[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{directory}/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#
    )
}
