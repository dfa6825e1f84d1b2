//! What may befall a node's network, and how long it takes until all is well again: device by device, table by table, while
//! packets flow. The faults strike the first node of a dual-stack cluster of two; one family is struck, and the other one is
//! watched too.

mod fault;

pub use fault::Fault;

use crate::cluster::{Backend, Cluster};
use crate::fabric::UPLINK;
use crate::probe::{self, ask};
use crate::stream::{Report, Stream};
use crate::{Result, eventually, oracle};
use ipnetwork::IpNetwork;
use kernel::netlink::Netlink;
use kernel::{Overlay, Scope, observe, sysctl};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Between two requests of the streams.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long a fault may last before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the underlay's MTU is changed to, and the usual one, in bytes.
const MTUS: (u32, u32) = (1400, 1500);

/// Public addresses of a node that there is not, which takes the first node's subnets.
const ANOTHER: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(192, 168, 50, 250)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x50, 0, 0, 0, 0, 0xfa)));

/// What became of a fault.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// from the end of what was done until everything was as it should be
    pub healed: Duration,
    /// what became of the packets of the family that was struck
    pub struck: Report,
    /// what became of the packets of the other one
    pub other: Report,
    /// what became of packets of the family that was struck from node to node beside the tunnel, where it is their wire that
    /// was struck: nothing that runs over it can lose less
    pub bare: Option<Report>,
}

impl Outcome {
    /// For how long nothing came through which the wire itself would have carried.
    pub fn own_outage(&self) -> Duration {
        let wire = self.bare.as_ref().map_or(Duration::ZERO, |bare| bare.longest_outage);
        self.struck.longest_outage.saturating_sub(wire)
    }

    /// What became of the packets that were struck, in words.
    pub fn losses(&self) -> String {
        let bare = self.bare.as_ref().map(|bare| format!(", {} of {} beside the tunnel", bare.lost, bare.sent));
        format!("{} of {} lost{}", self.struck.lost, self.struck.sent, bare.unwrap_or_default())
    }
}

/// A cluster that faults strike one after another.
#[derive(Debug)]
pub struct Victim {
    cluster: Cluster,
    backend: Backend,
    /// the next free address on the fabric
    next: u8,
    /// the peer itself answers, too
    serves: bool,
}

impl Victim {
    /// A dual-stack cluster of two nodes with a pod each.
    pub fn new(cluster: Cluster, backend: Backend) -> Self {
        Victim { cluster, backend, next: 150, serves: false }
    }

    /// Strikes, and measures until all is well; `v6` is the family that is struck.
    ///
    /// # Errors
    /// Also when it never gets well, with what is wrong.
    pub fn suffer(&mut self, fault: Fault, v6: bool) -> Result<Outcome> {
        let backend = self.backend;
        let in_context = |error| format!("{fault} ({backend}, {}): {error}", family_name(v6));
        let healthy = eventually(PATIENCE, || self.stable()).map_err(in_context)?;
        let bare = if fault.strikes_the_wire() { Some(self.bare(v6).map_err(in_context)?) } else { None };
        let pod = self.cluster.nodes[0].pods[0].sandbox.network();
        let targets = &self.cluster.nodes[1].pods[0].addresses;
        let target =
            |v6: bool| targets.iter().find(|address| address.is_ipv6() == v6).copied().ok_or("no such address");
        let struck = Stream::start(pod, target(v6)?, INTERVAL).map_err(in_context)?;
        let other = Stream::start(pod, target(!v6)?, INTERVAL).map_err(in_context)?;
        let key = self.cluster.nodes[0].lease_key()?;
        self.strike(fault, v6).map_err(|error| format!("{fault}: {error}"))?;
        let start = Instant::now();
        eventually(PATIENCE, || self.is_well(fault, &healthy))
            .map_err(|error| format!("{fault} ({}, {}): {error}", self.backend, family_name(v6)))?;
        let healed = start.elapsed();
        if fault == Fault::SubnetTaken {
            // What pods of the old subnet send is answered to its new owner, until they are replaced.
            let outcome = Outcome { healed, struck: struck.stop()?, other: other.stop()?, bare: None };
            self.settle(&key).map_err(|error| format!("after {fault}: {error}"))?;
            return Ok(outcome);
        }
        for stream in [&struck, &other].into_iter().chain(&bare) {
            stream.wait_for_answers(20).map_err(|error| format!("after {fault}: {error}"))?;
        }
        let bare = bare.map(Stream::stop).transpose()?;
        let outcome = Outcome { healed, struck: struck.stop()?, other: other.stop()?, bare };
        if fault == Fault::UnderlayMtuChanged {
            self.on_node(&format!("link set {UPLINK} mtu {}", MTUS.1))?;
        }
        // What the daemon's own eyes may not see.
        if !fault.changes_the_state() {
            eventually(PATIENCE, || match self.picture()? {
                now if now == healthy.picture => Ok(()),
                now => Err(format!("{now}\ninstead of\n{}", healthy.picture).into()),
            })
            .map_err(|error| format!("after {fault}: {error}"))?;
        }
        Ok(outcome)
    }

    /// A stream to the peer itself, which goes through no tunnel.
    fn bare(&mut self, v6: bool) -> Result<Stream> {
        let [first, peer] = [0, 1].map(|node| &self.cluster.nodes[node].host);
        if !self.serves {
            // Its threads end with this process.
            peer.network.run(probe::serve)??;
            self.serves = true;
        }
        let example: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Stream::start(&first.network, peer.address_like(example), INTERVAL)
    }

    fn on_node(&self, args: &str) -> Result<()> {
        oracle::ip(&self.cluster.nodes[0].host.network, args)
    }

    fn strike(&mut self, fault: Fault, v6: bool) -> Result<()> {
        let device = if v6 { "flannel-v6.1" } else { "flannel.1" };
        let network = self.cluster.nodes[0].host.network.try_clone()?;
        let nft = |args: &str| oracle::nft(&network, args).map(drop);
        match fault {
            Fault::DeviceDeleted => self.on_node(&format!("link del {device}")),
            Fault::DeviceRenamed => self.on_node(&format!("link set {device} name stolen0")),
            Fault::DeviceDown => self.on_node(&format!("link set {device} down")),
            Fault::MacChanged => self.on_node(&format!("link set {device} address 02:de:ad:be:ef:01")),
            Fault::MtuChanged => self.on_node(&format!("link set {device} mtu 1300")),
            Fault::AddressesFlushed => self.on_node(&format!("address flush dev {device}")),
            Fault::RoutesFlushed => self.on_node(&format!("-{} route flush proto 251", if v6 { 6 } else { 4 })),
            Fault::NeighboursCleared => self.on_node(&format!("neigh flush dev {device} nud permanent")),
            Fault::ForwardingEntriesCleared => {
                for line in oracle::bridge(&network, &format!("fdb show dev {device}"))?.lines() {
                    let mut words = line.split_whitespace();
                    if let (Some(mac), true) = (words.next(), line.contains(" dst ")) {
                        oracle::bridge(&network, &format!("fdb del {mac} dev {device} self"))?;
                    }
                }
                Ok(())
            }
            Fault::RulesetFlushed => nft("flush ruleset"),
            Fault::TableDeleted => nft(&format!("delete table {} flanneld-rs", nft_family(v6))),
            Fault::TableEmptied => nft(&format!("flush table {} flanneld-rs", nft_family(v6))),
            Fault::ForwardingOff => Ok(network.run(|| sysctl::set(forwarding(v6), "0"))??),
            Fault::UnderlayMtuChanged => self.on_node(&format!("link set {UPLINK} mtu {}", MTUS.0)),
            Fault::UnderlayBounced => {
                self.on_node(&format!("link set {UPLINK} down"))?;
                std::thread::sleep(Duration::from_millis(50));
                self.on_node(&format!("link set {UPLINK} up"))?;
                self.cluster.nodes[0].host.readdress()
            }
            Fault::UnderlayReplaced => self.cluster.replace_cable(0),
            Fault::AddressChanged => self.renumber(0),
            Fault::PeerMoved => self.renumber(1),
            Fault::SubnetTaken => {
                let mut lease =
                    json!({"PublicIP": ANOTHER.0, "PublicIPv6": ANOTHER.1, "BackendType": self.backend.to_string()});
                if self.backend == Backend::Vxlan {
                    for (member, mac) in [("BackendData", "02:00:00:00:00:fa"), ("BackendV6Data", "02:00:00:00:00:fb")]
                    {
                        lease[member] = json!({"VNI": 1, "VtepMAC": mac});
                    }
                }
                self.cluster.put_lease(&self.cluster.nodes[0].lease_key()?, Some(&lease))
            }
            Fault::PeerReplaced => {
                self.cluster.nodes[1].kill_daemon()?;
                self.renumber(1)?;
                let peer = &mut self.cluster.nodes[1];
                if self.backend == Backend::Vxlan {
                    oracle::ip(&peer.host.network, "link del flannel.1")?;
                    oracle::ip(&peer.host.network, "link del flannel-v6.1")?;
                }
                peer.start_daemon()
            }
        }
    }

    /// Replaces the first node's pod by one of its present subnets, and lets whoever took the former ones, under `key`, be gone.
    fn settle(&mut self, key: &str) -> Result<()> {
        self.cluster.put_lease(key, None)?;
        let name = self.cluster.nodes[0].pods[0].name.clone();
        self.cluster.nodes[0].remove_pod(&name)?;
        self.cluster.nodes[0].add_pod(&name)?;
        let pod = &self.cluster.nodes[0].pods[0];
        for (source, target) in pod.addresses.iter().zip(&self.cluster.nodes[1].pods[0].addresses) {
            let ask = || ask(pod.sandbox.network(), *target, Duration::from_millis(200));
            let seen = eventually(PATIENCE, ask)?.seen;
            if seen != *source {
                return Err(format!("{target} sees {seen} instead of {source}").into());
            }
        }
        Ok(())
    }

    fn renumber(&mut self, node: usize) -> Result<()> {
        self.next += 1;
        self.cluster.nodes[node].host.renumber(self.next)
    }

    /// Whether everything is as it should be after `fault`.
    fn is_well(&self, fault: Fault, healthy: &State) -> Result<()> {
        let now = self.look()?;
        if !fault.changes_the_state() {
            return healthy.expect(&now);
        }
        let hosts = [&self.cluster.nodes[0].host, &self.cluster.nodes[1].host];
        let mtu = if fault == Fault::UnderlayMtuChanged { MTUS.0 } else { MTUS.1 };
        for link in now.overlay.links.values() {
            // Of the outer headers: RFC 7348, and 20 bytes more with IPv6.
            let kernel::Tunnel::Vxlan(link) = link else { return Err("no VXLAN device".into()) };
            let overhead = if link.local.is_ipv4() { 50 } else { 70 };
            if (link.local, link.mtu) != (hosts[0].address_like(link.local), mtu - overhead) {
                return Err(format!("the device has {} and MTU {}", link.local, link.mtu).into());
            }
        }
        let peers: Vec<IpAddr> = match self.backend {
            Backend::Vxlan => now.overlay.fdb.values().copied().collect(),
            _ => now.overlay.routes.values().filter_map(|route| route.via).collect(),
        };
        let peers: Vec<IpAddr> = peers.into_iter().filter(|peer| ![ANOTHER.0, ANOTHER.1].contains(peer)).collect();
        if peers.len() != 2 || peers.iter().any(|peer| *peer != hosts[1].address_like(*peer)) {
            return Err(format!("the peer is looked for at {peers:?}").into());
        }
        let subnets = self.cluster.nodes[0].subnet_file()?;
        let file_mtu = match self.backend {
            Backend::Vxlan => mtu - 70,
            _ => mtu,
        };
        let expected = file_mtu.to_string();
        let moved = now.subnets.iter().zip(&healthy.subnets).filter(|(now, before)| now != before).count();
        let due = if fault == Fault::SubnetTaken { healthy.subnets.len() } else { 0 };
        if subnets.get("FLANNEL_MTU") != Some(&expected) || moved != due {
            return Err(format!("the subnet file says {subnets:?}").into());
        }
        for subnet in &now.subnets {
            let is_its = |(_, address): &(String, IpNetwork)| address.ip() == subnet.network();
            let network = IpNetwork::new(subnet.network(), subnet.prefix())?.to_string();
            if self.backend == Backend::Vxlan && !now.overlay.addresses.iter().any(is_its) {
                return Err(format!("no device has the address of {network}").into());
            }
            if !now.rules.iter().any(|table| table.contains(&network)) {
                return Err(format!("no rule names {network}").into());
            }
        }
        Ok(())
    }

    fn look(&self) -> Result<State> {
        let node = &self.cluster.nodes[0];
        let mut netlink = Netlink::open_in(&node.host.network)?;
        let networks = ["10.42.0.0/16", "fd42::/48"]
            .map(str::parse::<IpNetwork>)
            .into_iter()
            .collect::<std::result::Result<_, _>>()?;
        let scope = Scope { devices: ["flannel.1".into(), "flannel-v6.1".into()].into(), networks, own: Vec::new() };
        let overlay = observe(&mut netlink, &scope)?;
        let forwarding =
            node.host.network.run(|| [false, true].map(|v6| sysctl::get(forwarding(v6)).unwrap_or_default()))?;
        let listing = oracle::nft(&node.host.network, "list ruleset")?;
        // A table that was made anew comes last.
        let rules: BTreeSet<String> =
            listing.split("\ntable ").map(|table| table.trim_start_matches("table ").trim().into()).collect();
        let subnets = node.subnets()?;
        Ok(State { overlay, forwarding, rules, subnets, picture: String::new() })
    }

    /// The state, once it has both families of the peer and does not change while one looks twice.
    fn stable(&self) -> Result<State> {
        let state = self.look()?;
        if state.overlay.routes.len() != 2 {
            return Err(format!("{} routes", state.overlay.routes.len()).into());
        }
        let picture = self.picture()?;
        std::thread::sleep(Duration::from_millis(30));
        state.expect(&self.look()?)?;
        Ok(State { picture, ..state })
    }

    /// All that the daemon programs, in the words of Debian's tools, without what differs between equal states.
    fn picture(&self) -> Result<String> {
        let node = &self.cluster.nodes[0].host.network;
        let mut lines: Vec<String> = Vec::new();
        for link in oracle::ip_list(node, "-details link show")? {
            if link["linkinfo"]["info_kind"] == "vxlan" {
                let data = &link["linkinfo"]["info_data"];
                let local = if data["local"].is_string() { &data["local"] } else { &data["local6"] };
                let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&Value::from("UP")));
                lines.push(format!(
                    "{} {} {} {up} {} {local}",
                    link["ifname"], link["address"], link["mtu"], data["id"]
                ));
            }
        }
        for device in oracle::ip_list(node, "address show")? {
            if device["ifname"].as_str().is_some_and(|name| name.starts_with("flannel")) {
                let own = device["addr_info"].as_array().into_iter().flatten();
                lines.extend(own.map(|own| format!("{} {}/{}", device["ifname"], own["local"], own["prefixlen"])));
            }
        }
        for args in ["-4 route show proto 251", "-6 route show proto 251", "neigh show nud permanent"] {
            lines.extend(oracle::ip_list(node, args)?.iter().map(ToString::to_string));
        }
        let fdb = oracle::bridge(node, "fdb show")?;
        lines.extend(fdb.lines().filter(|line| line.contains(" dst ")).map(|line| line.trim().to_owned()));
        lines.sort();
        Ok(lines.join("\n"))
    }
}

/// What the first node has.
#[derive(Debug)]
struct State {
    overlay: Overlay,
    forwarding: [String; 2],
    rules: BTreeSet<String>,
    /// with the gateway's address, as in the subnet file
    subnets: Vec<IpNetwork>,
    picture: String,
}

impl State {
    fn expect(&self, now: &State) -> Result<()> {
        if now.overlay != self.overlay {
            return Err(format!("the overlay is {:?}\ninstead of {:?}", now.overlay, self.overlay).into());
        }
        if (&now.forwarding, &now.rules) != (&self.forwarding, &self.rules) {
            return Err(format!("forwarding {:?}, rules {:?}", now.forwarding, now.rules).into());
        }
        Ok(())
    }
}

fn forwarding(v6: bool) -> &'static str {
    if v6 { "net/ipv6/conf/all/forwarding" } else { "net/ipv4/ip_forward" }
}

fn nft_family(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}

/// The family in words.
pub fn family_name(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}
