//! A real etcd, for clusters that keep their leases in one.

use crate::probe::{http_get, http_post};
use crate::process::{Process, Program};
use crate::{Result, tools};
use kernel::netns::Netns;
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where clients are served.
const CLIENT_PORT: u16 = 2379;

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
        format!("http://{}", self.client())
    }

    /// Writes a key, for ever.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.request("/v3/kv/put", &json!({"key": base64(key), "value": base64(value)}))
    }

    /// Deletes a key, if it is there.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.request("/v3/kv/deleterange", &json!({"key": base64(key)}))
    }

    /// Over etcd's gateway for those who speak no gRPC.
    fn request(&self, path: &str, body: &serde_json::Value) -> Result<()> {
        let address = self.client();
        match self.network.run(|| http_post(address, path, &body.to_string()))?? {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("etcd answers {path} with {status} {answer}").into()),
        }
    }

    fn client(&self) -> SocketAddr {
        SocketAddr::new(self.address, CLIENT_PORT)
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
        let (address, network) = (SocketAddr::new(self.address, CLIENT_PORT), &self.network);
        process.until(Duration::from_secs(20), || network.run(|| healthy(address))?)
    }
}

fn healthy(address: SocketAddr) -> Result<()> {
    let (status, body) = http_get(address, "/health")?;
    let answer = format!("{status} {body}");
    if answer.contains("true") { Ok(()) } else { Err(format!("etcd answers {answer}").into()) }
}

/// RFC 4648 section 4.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let bits = (0..3).fold(0, |bits, number| bits << 8 | u32::from(bytes.get(number).copied().unwrap_or(0)));
        let digit = |number: usize| {
            let index = (bits >> (18 - 6 * number)) as usize & 63;
            if number <= bytes.len() { char::from(DIGITS.get(index).copied().unwrap_or(b'=')) } else { '=' }
        };
        [0, 1, 2, 3].map(digit)
    };
    text.as_bytes().chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// The vectors of RFC 4648 section 10.
    #[test]
    fn text_becomes_base64() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        assert!(pairs.iter().all(|(text, encoded)| base64(text) == *encoded));
    }
}
