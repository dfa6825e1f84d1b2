//! A node with a host outside, and pods with ports of the node, by several chains of plugins.

use crate::harness::{Attachment, Failure, IPV4, IPV6, Node, Plugins, eth0, ip};
use cni_plugin::host_ports::{HostPorts, TABLE};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The node's addresses on the wire to the outside.
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The outside's.
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// The port that pods serve, TCP and UDP.
pub(crate) const POD_PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_millis(600);

/// Which plugins make an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// flannel-rs, in one call
    Native,
    /// our bridge and portmap
    Chain,
    /// Debian's
    Reference,
}

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) outside: Netns,
    pub(crate) stack: Stack,
    /// further keys of the portmap configuration
    pub(crate) options: Value,
}

impl World {
    pub(crate) fn new(stack: Stack) -> Self {
        let world = World { node: Node::new(), outside: Netns::create().unwrap(), stack, options: json!({}) };
        ip(&world.node.host, "link add up0 type veth peer name eth0");
        let pid = world.outside.path();
        // `ip` knows namespaces by name or by process: the file stands for both.
        fs::create_dir_all("/run/netns").unwrap();
        let name = format!("outside-{}-{}", std::process::id(), world.outside.id().1);
        std::os::unix::fs::symlink(pid, format!("/run/netns/{name}")).unwrap();
        ip(&world.node.host, &format!("link set eth0 netns {name}"));
        fs::remove_file(format!("/run/netns/{name}")).unwrap();
        for (netns, device, addresses) in [(&world.node.host, "up0", NODE), (&world.outside, "eth0", OUTSIDE)] {
            ip(netns, &format!("addr add {}/24 dev {device}", addresses[0]));
            ip(netns, &format!("addr add {}/64 dev {device} nodad", addresses[1]));
            ip(netns, &format!("link set {device} up"));
            ip(netns, "link set lo up");
        }
        // Pods answer the outside over the node; the outside needs no way to them.
        world
    }

    /// Sets a sysctl of the node.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        self.node.host.run(|| kernel::sysctl::set(key, value).unwrap()).unwrap();
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.node.dir.path().join("host-ports")
    }

    pub(crate) fn ports(&self) -> HostPorts {
        HostPorts::recorded_in(self.directory())
    }

    fn plugins(&self) -> Plugins {
        if self.stack == Stack::Reference { Plugins::Reference } else { Plugins::Ours }
    }

    /// The configurations of the chain, with `mappings` for whoever does them.
    pub(crate) fn configs(&self, mappings: &Value) -> Vec<Value> {
        let with_ports = |mut config: Value| {
            config["runtimeConfig"] = json!({"portMappings": mappings});
            for (key, value) in self.options.as_object().unwrap() {
                config[key] = value.clone();
            }
            if self.stack != Stack::Reference {
                config["hostPortsDir"] = json!(self.directory());
            }
            config
        };
        match self.stack {
            Stack::Native => vec![with_ports(self.node.native("1.0.0"))],
            _ => {
                let portmap = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap"});
                vec![self.node.bridge("1.0.0", &[IPV4, IPV6]), with_ports(portmap)]
            }
        }
    }

    pub(crate) fn add(&self, attachment: Attachment<'_>, mappings: &Value) -> Result<Value, Failure> {
        let mut previous = None;
        for mut config in self.configs(mappings) {
            if let Some(previous) = previous {
                config["prevResult"] = previous;
            }
            previous = Some(self.node.call(self.plugins(), "ADD", attachment, &config)?);
        }
        Ok(previous.unwrap())
    }

    pub(crate) fn del(&self, attachment: Attachment<'_>, mappings: &Value) -> Result<(), Failure> {
        for config in self.configs(mappings).into_iter().rev() {
            self.node.call(self.plugins(), "DEL", attachment, &config)?;
        }
        Ok(())
    }

    pub(crate) fn check(&self, attachment: Attachment<'_>, mappings: &Value, result: &Value) -> Result<(), Failure> {
        for config in self.configs(mappings) {
            self.node.check(attachment, &config, result)?;
        }
        Ok(())
    }

    pub(crate) fn gc(&self, valid: &[(&str, &str)]) -> Result<(), Failure> {
        for config in self.configs(&json!([])) {
            self.node.gc(&config, valid)?;
        }
        Ok(())
    }

    /// `nft` inside the node.
    pub(crate) fn nft(&self, arguments: &str) -> String {
        let inside = self.node.host.enter().unwrap();
        let output = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
        drop(inside);
        assert!(output.status.success(), "nft {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The elements of all sets of our tables, one line each.
    pub(crate) fn elements(&self) -> Vec<String> {
        let mut found = Vec::new();
        for family in ["ip", "ip6"] {
            if !self.nft("list tables").contains(&format!("table {family} {TABLE}\n")) {
                continue;
            }
            let listing: Value = serde_json::from_str(&self.nft(&format!("-j list table {family} {TABLE}"))).unwrap();
            for object in listing["nftables"].as_array().unwrap() {
                let set = if object["map"].is_null() { &object["set"] } else { &object["map"] };
                for element in set["elem"].as_array().into_iter().flatten() {
                    found.push(format!("{family} {} {element}", set["name"].as_str().unwrap()));
                }
            }
        }
        found
    }

    /// Records, claims, subnets: whatever files there are but the lock.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                } else if entry.file_name() != "lock" {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    pub(crate) fn assert_no_ports(&self, context: &str) {
        assert_eq!(self.elements(), [""; 0], "{context}: elements");
        assert_eq!(self.files(), [""; 0].map(PathBuf::from), "{context}: files");
    }
}

pub(crate) fn mapping(host: u16, pod: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": pod, "protocol": protocol})
}

/// A pod that is attached and tells those who ask on [`POD_PORT`] its name and their address.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) result: Value,
}

impl Pod {
    pub(crate) fn start(world: &World, name: &str, mappings: &Value) -> Self {
        let netns = Netns::create().unwrap();
        let result = world.add(eth0(name, &netns), mappings).unwrap();
        serve(&netns, name);
        Pod { name: name.into(), netns, result }
    }

    pub(crate) fn attachment(&self) -> Attachment<'_> {
        eth0(&self.name, &self.netns)
    }
}

/// Serves TCP and UDP for as long as the test runs.
pub(crate) fn serve(netns: &Netns, name: &str) {
    let inside = netns.enter().unwrap();
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), POD_PORT);
    let (tcp, udp) = (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
    drop(inside);
    let words = move |name: &str, client: SocketAddr| format!("{name} {}", client.ip().to_canonical());
    let tcp_name = name.to_owned();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let client = stream.peer_addr().unwrap();
            let _ = stream.write_all(words(&tcp_name, client).as_bytes());
        }
    });
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(words(&name, client).as_bytes(), client);
        }
    });
}

/// Asks by TCP: who answered, and whom they saw.
pub(crate) fn ask_tcp(from: &Netns, to: &str, port: u16) -> Result<(String, IpAddr), String> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let inside = from.enter().unwrap();
    // The reference plugins return before neighbours are found by IPv6, and lose the first packet.
    let stream = TcpStream::connect_timeout(&to, PATIENCE).or_else(|_| TcpStream::connect_timeout(&to, PATIENCE));
    drop(inside);
    let mut stream = stream.map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    understood(&text)
}

/// Asks by UDP, more than once.
pub(crate) fn ask_udp(from: &Netns, to: &str, port: u16) -> Result<(String, IpAddr), String> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let inside = from.enter().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    drop(inside);
    socket.connect(to).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE / 5)).unwrap();
    let mut last = String::new();
    for _attempt in 0..5 {
        let mut buffer = [0; 128];
        match socket.send(b"?").and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => return understood(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn understood(text: &str) -> Result<(String, IpAddr), String> {
    let (name, seen) = text.split_once(' ').ok_or_else(|| format!("{text:?}"))?;
    Ok((name.into(), seen.parse().map_err(|_| format!("{text:?}"))?))
}
