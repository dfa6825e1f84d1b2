//! Pods: a process that serves the probes in a network namespace of its own.

use crate::process::Process;
use crate::runner::Attachment;
use crate::{Result, tools};
use kernel::netns::Netns;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A sandbox: the process and its namespace, which ends with the process.
#[derive(Debug)]
pub struct Sandbox {
    process: Process,
    network: Netns,
}

impl Sandbox {
    /// Starts the process; on return it serves. Its messages go to `<logs>/<name>.log`.
    pub fn start(name: &str, logs: &Path) -> Result<Self> {
        let process = start_holder(name, &["pod"], logs)?;
        let network = Netns::open(&path_of(process.pid()))?;
        Ok(Sandbox { process, network })
    }

    /// The path that a container runtime gives to plugins.
    pub fn path(&self) -> PathBuf {
        path_of(self.process.pid())
    }

    /// The namespace, to run probes in.
    pub fn network(&self) -> &Netns {
        &self.network
    }

    /// The process that holds the namespace.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn path_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Starts one of the helper's own commands that says `ready` and then stays.
pub(crate) fn start_holder(name: &str, args: &[&str], logs: &Path) -> Result<Process> {
    let log = logs.join(format!("{name}.log"));
    let messages = std::fs::File::options().create(true).append(true).open(&log)?;
    let mut command = Command::new(tools::helper()?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages);
    let mut child = command.spawn().map_err(|error| format!("starting {name}: {error}"))?;
    let output = child.stdout.take();
    let mut process = Process::adopt(name, child, log);
    let mut line = String::new();
    BufReader::new(output.ok_or("no pipe")?).read_line(&mut line)?;
    if line.trim_end() != "ready" {
        process.wait(std::time::Duration::from_secs(1))?;
        return Err(format!("{name} did not get ready\n{}", process.last_words()).into());
    }
    Ok(process)
}

/// A pod: a sandbox that a plugin attached to the cluster's network.
#[derive(Debug)]
pub struct Pod {
    /// name, for tables
    pub name: String,
    /// its address, the first if it has several
    pub address: IpAddr,
    /// all its addresses
    pub addresses: Vec<IpAddr>,
    /// how the runtime calls the attachment
    pub attachment: Attachment,
    /// its process and namespace
    pub sandbox: Sandbox,
}

/// The addresses of an ADD result (any version from 0.3.0 on), of which there is at least one.
pub fn addresses(result: &serde_json::Value) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let text = ip["address"].as_str().unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default();
        addresses.push(address.parse().map_err(|error| format!("{text:?} in an ADD result: {error}"))?);
    }
    if addresses.is_empty() { Err(format!("no address in {result}").into()) } else { Ok(addresses) }
}

/// The first address of an ADD result.
pub fn first_address(result: &serde_json::Value) -> Result<IpAddr> {
    addresses(result)?.first().copied().ok_or_else(|| "no address".into())
}
