//! A real containerd with runc in a node, on a machine of its own: process numbers, mounts and /run are private, so that
//! its shims and sandboxes end with us.

use crate::pod::start_holder;
use crate::process::{Process, Program};
use crate::{Result, pause, tools};
use kernel::netns::Netns;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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
    _cgroups: Cgroups,
}

/// The control groups of containers, which stay when containers end with their machine.
#[derive(Debug)]
struct Cgroups {
    tasks: PathBuf,
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = crate::eventually(Duration::from_secs(2), || {
            for task in fs::read_dir(&self.tasks)? {
                let name = task?.file_name();
                for controller in fs::read_dir("/sys/fs/cgroup")? {
                    let group = controller?.path().join("k8s.io").join(&name);
                    if group.exists() {
                        fs::remove_dir(&group)?;
                    }
                }
            }
            Ok(())
        });
    }
}

impl Containerd {
    /// Starts one in `network`, with its files in `directory`, that runs the CNI plugins in `plugins` as `network_list`
    /// (a conflist) says, and imports the pause image.
    pub fn start(network: &Netns, directory: &Path, plugins: &Path, network_list: &Value) -> Result<Self> {
        let conflists = directory.join("net.d");
        fs::create_dir_all(&conflists)?;
        fs::write(conflists.join("10-e2e.conflist"), network_list.to_string())?;
        Self::on_a_machine(network, directory, plugins, &conflists)
    }

    /// The same on a machine as it is before somebody installs a network: with empty directories in the usual places (see
    /// [`Containerd::file`]).
    pub fn start_bare(network: &Netns, directory: &Path) -> Result<Self> {
        let (plugins, conflists) = (Path::new("/opt/cni/bin"), Path::new("/etc/cni/net.d"));
        let containerd = Self::on_a_machine(network, directory, plugins, conflists)?;
        for place in [plugins, conflists] {
            fs::create_dir_all(containerd.file(place))?;
        }
        Ok(containerd)
    }

    fn on_a_machine(network: &Netns, directory: &Path, plugins: &Path, conflists: &Path) -> Result<Self> {
        let executable = tools::from_package("/usr/bin/containerd", "containerd")?;
        tools::from_package("/usr/sbin/runc", "runc")?;
        fs::create_dir_all(directory)?;
        fs::write(directory.join("config.toml"), config(directory, plugins, conflists))?;
        let mut machine = vec!["machine"];
        for path in ["/run", "/etc/cni", "/opt/cni", "/var/lib"] {
            machine.extend(["--tmpfs", path]);
        }
        machine.extend(tools::without_others(plugins));
        let machine = start_holder("machine", &machine, directory)?;
        let network = network.try_clone()?;
        let directory = directory.to_owned();
        let cgroups = Cgroups { tasks: directory.join("state/io.containerd.runtime.v2.task/k8s.io") };
        let mut containerd = Containerd { executable, network, directory, process: None, machine, _cgroups: cgroups };
        containerd.resume()?;
        containerd.import(&pause::image(&containerd.directory)?)?;
        Ok(containerd)
    }

    /// Imports an image archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let import = ["images", "import", "--snapshotter", "native", &archive.display().to_string()];
        self.ctr(&import).map(|_| ())
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
        for (target, link) in [(self.directory.join("net.d"), "/etc/cni/net.d"), (plugins.into(), "/opt/cni/bin")] {
            match std::os::unix::fs::symlink(target, self.file(link)) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Program::new(name, client)
            .args(["--address".as_ref(), self.socket().as_os_str()])
            .args(["-n", "k8s.io", "run", "--rm", "--cni", "--snapshotter", "native", pause::IMAGE, name])
            .network(&self.network)
            .machine(self.machine.pid())
            .start(&self.directory)
    }

    /// The process whose mounts and process numbers are those of its machine.
    pub fn machine(&self) -> u32 {
        self.machine.pid()
    }

    /// A path of the machine as we see it.
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.machine.pid())).join(path.strip_prefix("/").unwrap_or(path))
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
    let image = pause::IMAGE;
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{conflists}"
"#
    )
}
