//! A real containerd with runc in a node, on a machine of its own: process numbers, mounts and /run are private, so that
//! its shims and sandboxes end with us.

use crate::pod::start_holder;
use crate::process::{Process, Program};
use crate::{Result, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const IMAGE: &str = "localhost/pause:e2e";
/// containerd takes its time to load its plugins.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A containerd server; what it keeps on disk survives [`Containerd::kill`].
#[derive(Debug)]
pub struct Containerd {
    executable: PathBuf,
    network: Netns,
    directory: PathBuf,
    // Dropped in this order: the server before the machine that it runs on.
    process: Option<Process>,
    machine: Process,
}

impl Containerd {
    /// Starts one in `network`, with its files in `directory`, that runs the CNI plugins in `plugins` as `network_list`
    /// (a conflist) says, and imports the pause image.
    pub fn start(network: &Netns, directory: &Path, plugins: &Path, network_list: &Value) -> Result<Self> {
        let executable = tools::from_package("/usr/bin/containerd", "containerd")?;
        tools::from_package("/usr/sbin/runc", "runc")?;
        let conflists = directory.join("net.d");
        fs::create_dir_all(&conflists)?;
        fs::write(conflists.join("10-e2e.conflist"), network_list.to_string())?;
        fs::write(directory.join("config.toml"), config(directory, plugins, &conflists))?;
        let mut machine = vec!["machine", "--tmpfs", "/run", "--tmpfs", "/etc/cni", "--tmpfs", "/opt/cni"];
        machine.extend(tools::without_others(plugins));
        let machine = start_holder("machine", &machine, directory)?;
        let network = network.try_clone()?;
        let mut containerd = Containerd { executable, network, directory: directory.into(), process: None, machine };
        containerd.resume()?;
        let image = pause_image(&containerd.directory)?;
        containerd.ctr(&["images", "import", "--snapshotter", "native", &image.display().to_string()])?;
        Ok(containerd)
    }

    /// The address of its CRI, for a client.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Kills the server; sandboxes and shims live on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().ok_or("containerd does not run")?.kill()
    }

    /// Starts the server (again) and waits until it listens.
    pub fn resume(&mut self) -> Result<()> {
        let socket = self.socket();
        // What a killed server left would look like one that listens.
        let _ = fs::remove_file(&socket);
        let process = Program::new("containerd", &self.executable)
            .args(["--config".as_ref(), self.directory.join("config.toml").as_os_str()])
            .network(&self.network)
            .machine(self.machine.pid())
            .start(&self.directory)?;
        let process = self.process.insert(process);
        process.until(START_LIMIT, || {
            UnixStream::connect(&socket).map(|_| ()).map_err(|error| format!("{}: {error}", socket.display()).into())
        })
    }

    /// Runs containerd's own client in the namespace of Kubernetes' containers; what it printed.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let client = tools::from_package("/usr/bin/ctr", "containerd")?;
        let output =
            Command::new(client).arg("--address").arg(self.socket()).args(["-n", "k8s.io"]).args(args).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        Err(format!("ctr {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into())
    }

    /// Starts a container of the pause image with `ctr run --cni`, which looks for networks and plugins in `/etc/cni/net.d`
    /// and `/opt/cni/bin` only: there the machine gets what containerd itself was started with. The process ends, and
    /// detaches the container, when the container ends.
    pub fn ctr_run_cni(&self, name: &str, plugins: &Path) -> Result<Process> {
        let client = tools::from_package("/usr/bin/ctr", "containerd")?;
        let root = PathBuf::from(format!("/proc/{}/root", self.machine.pid()));
        for (target, link) in [(self.directory.join("net.d"), "etc/cni/net.d"), (plugins.into(), "opt/cni/bin")] {
            match std::os::unix::fs::symlink(target, root.join(link)) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Program::new(name, client)
            .args(["--address".as_ref(), self.socket().as_os_str()])
            .args(["-n", "k8s.io", "run", "--rm", "--cni", "--snapshotter", "native", IMAGE, name])
            .network(&self.network)
            .machine(self.machine.pid())
            .start(&self.directory)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }
}

/// The snapshotter `native` needs no overlay on an overlay; runc may not set a negative oom score without
/// CAP_SYS_RESOURCE, hence `restrict_oom_score_adj`.
fn config(directory: &Path, plugins: &Path, conflists: &Path) -> String {
    let (directory, plugins, conflists) = (directory.display(), plugins.display(), conflists.display());
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{conflists}"
"#
    )
}

/// An image archive with nothing in it but our pause program, linked statically.
fn pause_image(directory: &Path) -> Result<PathBuf> {
    pause_layer(directory)?;
    let sum = run(Command::new("sha256sum").arg("layer.tar").current_dir(directory))?;
    let digest = sum.split_whitespace().next().ok_or("sha256sum printed nothing")?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(directory.join("config.json"), config.to_string())?;
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let files = ["-cf", "pause.tar", "manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar").args(files).current_dir(directory))?;
    Ok(directory.join("pause.tar"))
}

/// Its only layer: the file system of a container.
pub(crate) fn pause_layer(directory: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/pause.rs");
    let root = directory.join("image");
    fs::create_dir_all(&root)?;
    run(Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .arg(source)
        .arg("-o")
        .arg(root.join("pause")))?;
    run(Command::new("tar").arg("-C").arg(&root).args(["-cf", "layer.tar", "pause"]).current_dir(directory))?;
    Ok(directory.join("layer.tar"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
