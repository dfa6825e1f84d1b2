//! A node with pods, each a network namespace of its own, and calls of the real executables in it.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of this")]

use kernel::netlink::{Link, Netlink};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The CNI error that a call ended in.
#[derive(Debug)]
pub struct Failure {
    pub code: u64,
    pub msg: String,
    pub details: String,
}

/// One attachment.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    pub container: &'a str,
    pub ifname: &'a str,
    pub netns: &'a Netns,
}

/// eth0 of `container`.
pub fn eth0<'a>(container: &'a str, netns: &'a Netns) -> Attachment<'a> {
    Attachment { container, ifname: "eth0", netns }
}

/// Which executables are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugins {
    Ours,
    Reference,
}

pub struct Node {
    pub host: Netns,
    pub dir: tempfile::TempDir,
}

pub const IPV4: &str = "10.9.0.0/24";
pub const IPV6: &str = "fd09::/64";

impl Node {
    pub fn new() -> Self {
        let host = Netns::create().expect("these tests make network namespaces: run them as root");
        let node = Node { host, dir: tempfile::tempdir().unwrap() };
        node.write_subnet_file("10.9.0.1/24", Some("fd09::1/64"));
        ip(&node.host, "link set lo up");
        node
    }

    pub fn subnet_file(&self) -> PathBuf {
        self.dir.path().join("subnet.env")
    }

    pub fn write_subnet_file(&self, ipv4: &str, ipv6: Option<&str>) {
        let mut text = format!("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET={ipv4}\nFLANNEL_MTU=1450\n");
        if let Some(ipv6) = ipv6 {
            text.push_str(&format!("FLANNEL_IPV6_NETWORK=fd00::/8\nFLANNEL_IPV6_SUBNET={ipv6}\n"));
        }
        text.push_str("FLANNEL_IPMASQ=true\n");
        std::fs::write(self.subnet_file(), text).unwrap();
    }

    pub fn networks(&self) -> PathBuf {
        self.dir.path().join("networks")
    }

    pub fn attachments(&self) -> PathBuf {
        self.dir.path().join("attachments")
    }

    pub fn host_ports(&self) -> PathBuf {
        self.dir.path().join("host-ports")
    }

    /// The reference's dialect, bridge br7, with one address of each of `subnets`.
    pub fn bridge(&self, version: &str, subnets: &[&str]) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        json!({
            "cniVersion": version, "name": "net", "type": "bridge", "bridge": "br7", "isDefaultGateway": true,
            "mtu": 1400, "hairpinMode": true, "attachmentsDir": self.attachments(),
            "ipam": {"type": "host-local", "dataDir": self.networks(), "ranges": ranges},
        })
    }

    /// Our own dialect, on the subnet file.
    pub fn native(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "net", "type": "flannel-rs", "subnetFile": self.subnet_file(),
            "dataDir": self.networks(), "attachmentsDir": self.attachments(), "hostPortsDir": self.host_ports(),
        })
    }

    pub fn call(
        &self,
        plugins: Plugins,
        verb: &str,
        attachment: Attachment<'_>,
        config: &Value,
    ) -> Result<Value, Failure> {
        self.call_in(plugins, verb, attachment, &attachment.netns.path(), config)
    }

    /// As [`Node::call`], with any path for the sandbox; an empty one is none.
    pub fn call_in(
        &self,
        plugins: Plugins,
        verb: &str,
        attachment: Attachment<'_>,
        netns: &Path,
        config: &Value,
    ) -> Result<Value, Failure> {
        let executable = match plugins {
            Plugins::Ours => PathBuf::from(env!("CARGO_BIN_EXE_cni-plugin")),
            Plugins::Reference => Path::new("/usr/lib/cni").join(config["type"].as_str().unwrap()),
        };
        let mut command = Command::new(executable);
        self.answer(with_environment(&mut command, verb, attachment, netns), config)
    }

    /// Runs `command` on the node with `config` on its standard input, and reads its answer.
    pub fn answer(&self, command: &mut Command, config: &Value) -> Result<Value, Failure> {
        let output = self.output(command, config.to_string().as_bytes());
        let answer = || serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        if output.status.success() {
            return Ok(if output.stdout.is_empty() { Value::Null } else { answer() });
        }
        let error = answer();
        Err(Failure {
            code: error["code"].as_u64().unwrap(),
            msg: error["msg"].as_str().unwrap().to_owned(),
            details: error["details"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Runs `command` on the node with `input` on its standard input.
    pub fn output(&self, command: &mut Command, input: &[u8]) -> Output {
        let inside = self.host.enter().unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(inside);
        // It need not read all of it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    pub fn add(&self, attachment: Attachment<'_>, config: &Value) -> Result<Value, Failure> {
        self.call(Plugins::Ours, "ADD", attachment, config)
    }

    pub fn del(&self, attachment: Attachment<'_>, config: &Value) -> Result<Value, Failure> {
        self.call(Plugins::Ours, "DEL", attachment, config)
    }

    pub fn check(&self, attachment: Attachment<'_>, config: &Value, result: &Value) -> Result<Value, Failure> {
        let mut config = config.clone();
        config["prevResult"] = result.clone();
        self.call(Plugins::Ours, "CHECK", attachment, &config)
    }

    pub fn status(&self, config: &Value) -> Result<Value, Failure> {
        self.call(Plugins::Ours, "STATUS", eth0("none", &self.host), config)
    }

    /// GC with `valid` as (container, ifname).
    pub fn gc(&self, config: &Value, valid: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut config = config.clone();
        config["cniVersion"] = "1.1.0".into();
        let valid: Vec<Value> = valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        config["cni.dev/valid-attachments"] = valid.into();
        self.call(Plugins::Ours, "GC", eth0("none", &self.host), &config)
    }

    pub fn link(&self, name: &str) -> Option<Link> {
        Netlink::open_in(&self.host).unwrap().link(name).unwrap()
    }

    pub fn links(&self) -> Vec<Link> {
        Netlink::open_in(&self.host).unwrap().links().unwrap()
    }

    /// Names of the host ends.
    pub fn veths(&self) -> BTreeSet<String> {
        self.links().into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect()
    }

    /// Addresses of the neighbours that lead somewhere, less those that each link has by itself.
    pub fn neighbours(&self) -> Vec<String> {
        let text = ip(&self.host, "neigh show");
        let lines = text.lines().filter(|line| line.contains(" lladdr ") && !line.starts_with("fe80:"));
        lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// Reserved addresses of all networks.
    pub fn reservations(&self) -> BTreeSet<IpAddr> {
        let networks = std::fs::read_dir(self.networks()).into_iter().flatten().flatten();
        let files = networks.flat_map(|network| std::fs::read_dir(network.path()).into_iter().flatten().flatten());
        files.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect()
    }

    /// What attachments leave: nothing.
    pub fn assert_clean(&self, context: &str) {
        assert_eq!(self.veths(), BTreeSet::new(), "{context}: links");
        assert_eq!(self.neighbours(), [""; 0], "{context}: neighbours");
        assert_eq!(self.reservations(), BTreeSet::new(), "{context}: addresses");
        let records: Vec<_> = std::fs::read_dir(self.attachments()).into_iter().flatten().flatten().collect();
        assert!(records.is_empty(), "{context}: {records:?}");
        let draft = self.networks().join(".index/net/reservation");
        assert!(!draft.exists(), "{context}: {}", draft.display());
    }
}

/// Gives `command` the environment of a call.
pub fn with_environment<'a>(
    command: &'a mut Command,
    verb: &str,
    attachment: Attachment<'_>,
    netns: &Path,
) -> &'a mut Command {
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", attachment.container)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", attachment.ifname)
        .env("CNI_PATH", "/usr/lib/cni")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
}

/// Runs `ip` with `arguments` in a namespace; it must succeed.
pub fn ip(netns: &Netns, arguments: &str) -> String {
    let inside = netns.enter().unwrap();
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    drop(inside);
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The addresses of a result, without prefix length.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// The host end of a result.
pub fn host_end(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}
