//! What the firewalls of others on this node do with pods' packets. Ours accept them, but an accept in one table does not
//! overrule a drop in another: where somebody's does, as with the policies of Docker and firewalld, people are told whose.

use crate::family::{Family, PerFamily};
use ipnetwork::IpNetwork;
use kernel::netlink::Netlink;
use kernel::nft::{ForwardChain, Nft, Obstacle, Packet};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Devices by which pods are usually attached: what accepts one of these is meant for pods, whether there is one yet or not.
const USUAL: [&str; 3] = ["cbr0", "cni0", "veth0"];

/// One family of this node, as far as its pods' packets are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// the pod network
    pub network: IpNetwork,
    /// an address of a pod of this node
    pub own: IpAddr,
    /// an address of a pod of another node
    pub other: IpAddr,
    /// the device that leads to other nodes' pods
    pub device: String,
}

impl Paths {
    /// Of a node with this subnet, where `subnets` are all that nodes can have. None: there is no other one.
    pub fn new(
        network: IpNetwork,
        own: IpNetwork,
        mut subnets: impl Iterator<Item = IpNetwork>,
        device: String,
    ) -> Option<Self> {
        let other = subnets.find(|subnet| subnet.network() != own.network())?;
        Some(Paths { network, own: pod_of(own), other: pod_of(other), device })
    }

    /// The packets that are tried: from a pod to another node's, and back. Of each, one for every device that may be the pods'.
    fn packets(&self, attached_by: &[String]) -> [Vec<Packet>; 2] {
        let there = |device: &String| Packet {
            source: self.own,
            destination: self.other,
            input: device.clone(),
            output: self.device.clone(),
        };
        let back = |device: &String| Packet {
            source: self.other,
            destination: self.own,
            input: self.device.clone(),
            output: device.clone(),
        };
        [attached_by.iter().map(there).collect(), attached_by.iter().map(back).collect()]
    }
}

/// The second usable address of a subnet; the first is the gateway's.
fn pod_of(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() | 2).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() | 2).into()),
    }
}

/// Looks again where something may have changed.
#[derive(Debug, Default)]
pub struct Lookout {
    /// of what state of nftables the complaint is, and of which packets
    seen: Option<(u32, Trials)>,
    complaint: String,
}

/// The forms of each packet that is tried, with the pod network that it is of.
type Trials = Vec<(IpNetwork, Vec<Packet>)>;

impl Lookout {
    /// What keeps pods of different nodes from connecting, in words; empty if nothing does. While nothing has changed in
    /// nftables it costs a few questions to the kernel.
    ///
    /// # Errors
    /// What the kernel refuses to tell.
    pub fn complaint(
        &mut self,
        nft: &mut Nft,
        netlink: &mut Netlink,
        paths: &PerFamily<Paths>,
    ) -> kernel::Result<&str> {
        let of_family = |(_, paths): (Family, &Paths)| {
            paths.packets(&attached_by(netlink, paths)).map(|packets| (paths.network, packets))
        };
        let now = (nft.generation()?, paths.iter().flat_map(of_family).collect());
        if self.seen.as_ref() != Some(&now) {
            let (mut complaints, chains) = (BTreeSet::new(), nft.forward_chains()?);
            for (network, forms) in &now.1 {
                complaints.extend(obstacles(nft, &chains, forms)?.iter().map(|obstacle| say(obstacle, *network)));
            }
            self.complaint = complaints.into_iter().collect::<Vec<_>>().join("; ");
            self.seen = Some(now);
        }
        Ok(&self.complaint)
    }
}

/// The devices by which pods may be attached: the one that has the node's subnet, once there is one, or else the usual ones.
fn attached_by(netlink: &mut Netlink, paths: &Paths) -> Vec<String> {
    let index = netlink.lookup(paths.own).ok().and_then(|route| route.dev.filter(|_| route.via.is_none()));
    let link = index.and_then(|index| netlink.link_by_index(index).ok().flatten());
    match link.filter(|link| link.name != paths.device && link.name != "lo") {
        Some(link) => vec![link.name],
        None => USUAL.map(str::to_owned).into(),
    }
}

/// What drops a packet whichever of its forms it has.
fn obstacles(nft: &mut Nft, chains: &[ForwardChain], forms: &[Packet]) -> kernel::Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    for packet in forms {
        found = nft.obstacles(chains, packet)?;
        if found.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Whose table it is that drops, and what the operator can do.
fn say(obstacle: &Obstacle, network: IpNetwork) -> String {
    let remedy = match (obstacle.family, obstacle.table.as_str(), obstacle.chain.as_str()) {
        (kernel::nft::Family::Ip | kernel::nft::Family::Ip6, "filter", "FORWARD") => {
            let program = match Family::of(network.ip()) {
                Family::V4 => "iptables",
                Family::V6 => "ip6tables",
            };
            format!(
                "{program} -I FORWARD -s {network} -j ACCEPT and {program} -I FORWARD -d {network} -j ACCEPT \
                 (into DOCKER-USER where Docker is)"
            )
        }
        (_, "firewalld", _) => {
            format!("firewall-cmd --permanent --zone=trusted --add-source={network} and firewall-cmd --reload")
        }
        (family, table, chain) => {
            let selector = if network.is_ipv4() { "ip" } else { "ip6" };
            let rule =
                |side: &str| format!("nft insert rule {family} {table} {chain} {selector} {side} {network} accept");
            format!("{} and {}", rule("saddr"), rule("daddr"))
        }
    };
    format!("{obstacle} drops connections of pods in {network}, which no other table can overrule; remedy: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::nft::{Dropper, Family as Tables};

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn everybody_gets_a_remedy_in_the_words_of_his_firewall() {
        for (family, table, chain, pods, remedy) in [
            (Tables::Ip, "filter", "FORWARD", "10.42.0.0/16", "iptables -I FORWARD -d 10.42.0.0/16 -j ACCEPT"),
            (Tables::Ip6, "filter", "FORWARD", "fd42::/48", "ip6tables -I FORWARD -s fd42::/48 -j ACCEPT"),
            (Tables::Inet, "firewalld", "filter_FORWARD", "fd42::/48", "--zone=trusted --add-source=fd42::/48"),
            (Tables::Ip, "t", "c", "10.42.0.0/16", "nft insert rule ip t c ip daddr 10.42.0.0/16 accept"),
        ] {
            let obstacle = Obstacle { family, table: table.into(), chain: chain.into(), by: Dropper::Policy };
            let said = say(&obstacle, network(pods));
            assert!(said.starts_with("table ") && said.contains("(policy drop)") && said.contains(remedy), "{said}");
        }
    }

    #[test]
    fn packets_go_both_ways_between_pods_of_two_nodes() {
        let subnets = ["10.42.1.0/24", "10.42.2.0/24"].map(network);
        let paths = Paths::new(network("10.42.0.0/16"), subnets[0], subnets.into_iter(), "flannel.1".into()).unwrap();
        let [there, back] = paths.packets(&["cni0".into(), "cbr0".into()]);
        let ends = |packet: &Packet| (packet.source.to_string(), packet.input.clone(), packet.output.clone());
        assert_eq!(ends(&there[0]), ("10.42.1.2".into(), "cni0".into(), "flannel.1".into()));
        assert_eq!(ends(&back[1]), ("10.42.2.2".into(), "flannel.1".into(), "cbr0".into()));
        let alone = Paths::new(network("10.42.0.0/16"), subnets[0], subnets.into_iter().take(1), "flannel.1".into());
        assert_eq!(alone, None);
    }
}
