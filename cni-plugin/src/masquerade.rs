//! `ipMasq`: what a pod sends out of its own network gets the node's address. One nftables table for each network, whose
//! rules are static; a pod is an element of its set. Only the first packet of a connection meets the rules (nat chains), so
//! that nothing here touches a connection that exists.

use crate::shared_table::{self, SharedTable, from_pods, owner};
use cni_spec::AttachmentId;
use ipnetwork::IpNetwork;
use kernel::Result;
use kernel::nft::{Action, Chain, Element, Field, Hook, HookKind, HookPoint, Match, Rule, Set, Table};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest network name that becomes part of a table's name, in bytes (NFT_NAME_MAXLEN is 256).
const LONGEST_NETWORK: usize = 128;

/// The table of a network, without pods.
///
/// Destinations in the pods' own subnets are left alone, and so is multicast, as by the reference plugins.
pub(crate) fn table(network: &str) -> Table {
    let mut table = shared_table::table(format!("cni-masquerade-{}", fitting(network)));
    let own = [("own4", Field::Ipv4Address), ("own6", Field::Ipv6Address)];
    table.sets.extend(own.map(|(name, field)| (name.into(), Set::networks(field, []))));
    let mut rules = Vec::new();
    for ((from, (own, _)), multicast) in from_pods().into_iter().zip(own).zip(multicast()) {
        let stays = vec![from.clone(), Match::DestinationIn(own.into())];
        rules.push(Rule { matches: stays, action: Action::Return, comment: "stays in the network".into() });
        let leaves = vec![from, Match::NotDestination(multicast)];
        let action = Action::Masquerade { fully_random: false };
        rules.push(Rule { matches: leaves, action, comment: "leaves the network".into() });
    }
    let hook = Some(Hook::new(HookKind::Nat, HookPoint::Postrouting, 100));
    table.chains.push(Chain { name: "postrouting".into(), hook, rules });
    table
}

fn fitting(network: &str) -> String {
    if network.len() <= LONGEST_NETWORK {
        return network.into();
    }
    Sha256::digest(network).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// 224.0.0.0/4 and ff00::/8, which are valid whatever the fallback would be.
fn multicast() -> [IpNetwork; 2] {
    let (four, six) = (IpAddr::from(Ipv4Addr::new(224, 0, 0, 0)), IpAddr::from(Ipv6Addr::from_bits(0xff << 120)));
    [(four, 4), (six, 8)].map(|(ip, prefix)| IpNetwork::new(ip, prefix).unwrap_or_else(|_| IpNetwork::from(ip)))
}

/// Masquerades what `addresses`, each with the prefix length of its subnet, send out of their subnets.
pub(crate) fn add(network: &str, id: &AttachmentId, addresses: &[IpNetwork]) -> Result<()> {
    let mut shared = SharedTable::open(table(network))?;
    let pods: Vec<IpAddr> = addresses.iter().map(IpNetwork::ip).collect();
    shared.put_pod(&owner(network, id), &pods)?;
    for address in addresses {
        let own = IpNetwork::new(address.network(), address.prefix()).unwrap_or(*address);
        shared.add(if address.is_ipv4() { "own4" } else { "own6" }, &[Element::from(own)])?;
    }
    Ok(())
}

/// Removes the attachment's elements; `addresses`, if known, spare the search for them.
pub(crate) fn remove(network: &str, id: &AttachmentId, addresses: &[IpAddr]) -> Result<()> {
    let removed = SharedTable::open(table(network)).and_then(|table| table.remove_pod(&owner(network, id), addresses));
    unless_there_is_no_nftables(removed)
}

/// A kernel without nftables holds nothing that could be removed.
pub(crate) fn unless_there_is_no_nftables(removed: Result<()>) -> Result<()> {
    match removed {
        Err(error) if matches!(error.errno, Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Removes the elements of all attachments but `valid`, and with the last one the table.
pub(crate) fn gc(network: &str, valid: &[AttachmentId]) -> Result<()> {
    let owners: BTreeSet<String> = valid.iter().map(|id| owner(network, id)).collect();
    let collected = SharedTable::open(table(network)).and_then(|mut shared| match owners.is_empty() {
        true => shared.delete(),
        false => shared.retain(|found| owners.contains(found)).map(drop),
    });
    unless_there_is_no_nftables(collected)
}

/// What is missing, for CHECK.
pub(crate) fn check(network: &str, id: &AttachmentId, addresses: &[IpAddr]) -> Result<Vec<String>> {
    let mut shared = SharedTable::open(table(network))?;
    let name = table(network).name;
    let mut missing = Vec::new();
    if !shared.has_its_rules()? {
        missing.push(format!("nft table inet {name} is missing, or its rules were changed"));
    }
    let lacking = shared.missing(&owner(network, id), addresses)?;
    missing.extend(lacking.iter().map(|ip| format!("{ip} is not masqueraded: nft table inet {name} lacks it")));
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_these() {
        let text = "\
table inet cni-masquerade-cbr0 {
\tset own4 {
\t\ttype ipv4_addr
\t\tflags interval
\t}

\tset own6 {
\t\ttype ipv6_addr
\t\tflags interval
\t}

\tset pods4 {
\t\ttype ipv4_addr
\t}

\tset pods6 {
\t\ttype ipv6_addr
\t}

\tchain postrouting {
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tip saddr @pods4 ip daddr @own4 return comment \"stays in the network\"
\t\tip saddr @pods4 ip daddr != 224.0.0.0/4 masquerade comment \"leaves the network\"
\t\tip6 saddr @pods6 ip6 daddr @own6 return comment \"stays in the network\"
\t\tip6 saddr @pods6 ip6 daddr != ff00::/8 masquerade comment \"leaves the network\"
\t}
}
";
        assert_eq!(table("cbr0").to_string(), text);
        assert!(table(&"x".repeat(250)).name.len() < 60);
    }
}
