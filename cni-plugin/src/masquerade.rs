//! `ipMasq`: what a pod sends out of its own network gets the node's address. One nftables table for each network, whose
//! rules are static; a pod is an element of its set. Only the first packet of a connection meets the rules (nat chains), so
//! that nothing here touches a connection that exists.

use crate::attachments::Attached;
use crate::shared_table::{self, from_pods};
use ipnetwork::IpNetwork;
use kernel::nft::{Action, Chain, Element, Field, Hook, HookKind, HookPoint, Match, Rule, Set, Table};
use sha2::{Digest, Sha256};
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

/// The table with what an attachment has in it.
pub(crate) fn of(record: &Attached) -> Option<Table> {
    let own = record.masquerade.as_ref()?;
    let mut table = table(&record.network);
    shared_table::insert_pod(&mut table, &record.owner(), &record.addresses);
    for network in own {
        let set = if network.is_ipv4() { "own4" } else { "own6" };
        shared_table::insert(&mut table, set, [Element::from(*network)]);
    }
    Some(table)
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
