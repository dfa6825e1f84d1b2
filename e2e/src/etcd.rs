//! A real etcd, for clusters that keep their leases in one.

use crate::process::{Process, Program};
use crate::{Result, tools};
use kernel::netns::Netns;
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An etcd server in a namespace; its data survives [`Etcd::stop`].
#[derive(Debug)]
pub struct Etcd {
    executable: PathBuf,
    network: Netns,
    address: IpAddr,
    directory: PathBuf,
    process: Option<Process>,
}

impl Etcd {
    /// Starts one that serves clients at `address`:2379 of `network` and keeps its data and log in `directory`.
    pub fn start(network: &Netns, address: IpAddr, directory: &Path) -> Result<Self> {
        let executable = tools::from_package("/usr/bin/etcd", "etcd-server")?;
        std::fs::create_dir_all(directory)?;
        let network = network.try_clone()?;
        let mut etcd = Etcd { executable, network, address, directory: directory.into(), process: None };
        etcd.resume()?;
        Ok(etcd)
    }

    /// The client URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// Ends the server and keeps its data.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            None => Ok(()),
            Some(mut process) => process.stop(Duration::from_secs(10)).map(|_| ()),
        }
    }

    /// Sends it a signal; SIGSTOP is as if the network to it dropped every packet, until SIGCONT.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().ok_or("etcd is stopped")?.signal(signal)
    }

    /// Starts the server again with the data that it has, and waits until it serves.
    pub fn resume(&mut self) -> Result<()> {
        let client = self.endpoint();
        let peer = "http://127.0.0.1:2380";
        let process = Program::new("etcd", &self.executable)
            .args(["--name", "e2e", "--log-outputs", "stderr", "--unsafe-no-fsync"])
            .args(["--data-dir".as_ref(), self.directory.join("data").as_os_str()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("e2e={peer}")])
            .network(&self.network)
            .start(&self.directory)?;
        let process = self.process.insert(process);
        let address = SocketAddr::new(self.address, 2379);
        let network = &self.network;
        process.until(Duration::from_secs(20), || network.run(|| healthy(address))?)
    }
}

fn healthy(address: SocketAddr) -> Result<()> {
    let (status, body) = crate::probe::http_get(address, "/health")?;
    let answer = format!("{status} {body}");
    if answer.contains("true") { Ok(()) } else { Err(format!("etcd answers {answer}").into()) }
}
