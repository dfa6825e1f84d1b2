//! What reaches what, and as whom: the visible side of rules.

use super::facts::Facts;
use crate::bench::{Bench, NODE, NODE6, OUTSIDE, OUTSIDE6};
use e2e::oracle;
use e2e::probe::{self, PORT};
use kernel::netns::Netns;
use serde_json::Value;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long an answer may take, and how often it is asked for: one packet may be lost on a busy machine.
const LIMIT: Duration = Duration::from_millis(400);
const TRIES: usize = 4;

/// A way that a packet could go.
struct Probe<'a> {
    name: String,
    from: &'a Netns,
    to: SocketAddr,
    protocol: &'a str,
}

impl Probe<'_> {
    fn go(&self) -> String {
        for _ in 0..TRIES {
            let asked = match self.protocol {
                "tcp" => probe::ask_tcp_at(self.from, self.to, LIMIT),
                _ => probe::ask_at(self.from, self.to, LIMIT),
            };
            match asked {
                Ok(answer) => return format!("answered, seen as {}", answer.seen),
                Err(error) if is_refusal(&*error) => return "refused".into(),
                // Whether a router says that there is no way depends on how fast it gives up.
                Err(_) => {}
            }
        }
        "silence".into()
    }
}

fn is_refusal(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(ErrorKind::ConnectionRefused) || error.to_string().contains("refused")
}

/// The pods of a run: where they are, and their addresses.
pub(super) type Pods<'a> = [(&'a Netns, Vec<IpAddr>)];

/// Every way between the pods, the node and the outside, and over ports of the node.
pub(super) fn everywhere(facts: &mut Facts, bench: &Bench, pods: &Pods<'_>, mappings: Option<&Value>) {
    let mut probes = Vec::new();
    let places: Vec<(String, &Netns)> = (1..)
        .zip(pods)
        .map(|(number, (network, _))| (format!("pod {number}"), *network))
        .chain([("node".into(), bench.node()), ("outside".into(), bench.outside.network())])
        .collect();
    for (from, network) in &places {
        for (number, (target, addresses)) in (1..).zip(pods) {
            for ip in addresses.iter().filter(|_| !std::ptr::eq(*target, *network) && from != "outside") {
                let name = format!("{from} to pod {number} ({})", family(*ip));
                probes.push(Probe { name, from: network, to: SocketAddr::new(*ip, PORT), protocol: "udp" });
            }
        }
        for mapping in mappings.and_then(Value::as_array).into_iter().flatten() {
            probes.extend(over_port(from, network, mapping));
        }
    }
    let mut to_outside = Vec::new();
    for (number, (from, addresses)) in (1..).zip(pods) {
        for ip in addresses {
            let target: IpAddr = if ip.is_ipv4() { OUTSIDE } else { OUTSIDE6 }.parse().unwrap();
            let name = format!("pod {number} to outside ({})", family(*ip));
            to_outside.push(Probe { name, from, to: SocketAddr::new(target, PORT), protocol: "udp" });
        }
    }
    probes.append(&mut to_outside);
    all_at_once(facts, probes);

    // With a way to the pods, the outside reaches them under their own addresses, if it may.
    oracle::ip(bench.outside.network(), &format!("route replace 10.88.0.0/16 via {NODE}")).unwrap();
    oracle::ip(bench.outside.network(), &format!("route replace fd00:88::/32 via {NODE6}")).unwrap();
    let mut probes = Vec::new();
    for (number, (network, addresses)) in (1..).zip(pods) {
        for ip in addresses {
            let target: IpAddr = if ip.is_ipv4() { OUTSIDE } else { OUTSIDE6 }.parse().unwrap();
            let (pod, family, outside) = (SocketAddr::new(*ip, PORT), family(*ip), bench.outside.network());
            let name = format!("outside, which knows the way, to pod {number} ({family})");
            probes.push(Probe { name, from: outside, to: pod, protocol: "udp" });
            let name = format!("pod {number} to outside, which knows the way ({family})");
            probes.push(Probe { name, from: network, to: SocketAddr::new(target, PORT), protocol: "udp" });
        }
    }
    all_at_once(facts, probes);
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The ways to a port of the node, from `from`.
fn over_port<'a>(from: &str, network: &'a Netns, mapping: &'a Value) -> Vec<Probe<'a>> {
    let port = u16::try_from(mapping["hostPort"].as_u64().unwrap()).unwrap();
    let protocol = mapping["protocol"].as_str().unwrap_or("tcp");
    let mut hosts = vec![NODE, NODE6];
    if from == "node" {
        hosts.extend(["127.0.0.1", "::1"]);
    }
    let probe = |host: &str| Probe {
        name: format!("{from} to {protocol} port {port} of {host}"),
        from: network,
        to: SocketAddr::new(host.parse().unwrap(), port),
        protocol,
    };
    hosts.into_iter().map(probe).collect()
}

fn all_at_once(facts: &mut Facts, probes: Vec<Probe<'_>>) {
    std::thread::scope(|scope| {
        let running: Vec<_> = probes.iter().map(|probe| (probe.name.clone(), scope.spawn(|| probe.go()))).collect();
        for (name, probe) in running {
            facts.put(format!("reach: {name}"), probe.join().unwrap());
        }
    });
}
