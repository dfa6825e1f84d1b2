//! The rules that Go flannel leaves behind: tables of nftables in the one mode, chains in iptables' tables in the other. They
//! would outlive its networks, and two masquerade rules for one packet are one too many.
//!
//! They go only once our own rules stand, so that no packet goes without. Where iptables works by nftables, as it does since
//! 1.8, they are taken out through netlink; of older tables people are told what to run.

use crate::family::Family;
use crate::firewall::nft_family;
use kernel::ip_tables;
use kernel::nft::Nft;

/// By family, of its nftables mode.
fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// Of its iptables mode: table, chain, and the rule that leads to it, with the chain that this is in.
const CHAINS: [(&str, &str, &str); 2] = [
    ("nat", "FLANNEL-POSTRTG", "POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG"),
    ("filter", "FLANNEL-FWD", "FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD"),
];

/// Removes them. Returns what stays and why, in words; none of it keeps the node from serving pods.
pub(crate) fn remove_rules(nft: &mut Nft) -> String {
    let (mut stays, mut failures) = (legacy().into_iter().collect::<Vec<_>>(), Vec::new());
    let mut note = |what: String, removed: kernel::Result<bool>| match removed {
        Ok(true) => tracing::info!("removed {what} of Go flannel"),
        Ok(false) => {}
        Err(error) => failures.push(format!("{what} stays: {error}")),
    };
    for family in Family::ALL {
        let of = nft_family(family);
        note(format!("nftables table {of} {}", table(family)), nft.delete(of, table(family)));
        for (table, chain, rule) in CHAINS {
            let (base, _) = rule.split_once(' ').unwrap_or_default();
            // What pods need: an accept in our table does not overrule a drop in that one.
            match nft.drops_after(of, table, base, chain) {
                Ok(true) => {
                    if nft.has_chain(of, table, chain).unwrap_or(true) {
                        stays.push(format!(
                            "chain {chain} stays in table {of} {table}: it lets pods through where {base} drops others"
                        ));
                    }
                }
                Ok(false) => {
                    let removed = nft.delete_foreign_chain(of, table, chain);
                    note(format!("iptables chain {chain} ({of} {table}) and the rules that lead to it"), removed);
                }
                Err(error) => note(format!("iptables chain {chain} ({of} {table})"), Err(error)),
            }
        }
    }
    stays.extend(failures);
    stays.join("; ")
}

/// What people have to remove themselves, with the commands.
fn legacy() -> Option<String> {
    let mut commands = Vec::new();
    for (family, program) in [(ip_tables::Family::V4, "iptables-legacy"), (ip_tables::Family::V6, "ip6tables-legacy")] {
        // The accepts in the other table do no harm, and may be what lets pods through there.
        for (table, chain, rule) in CHAINS.into_iter().filter(|(table, ..)| *table == "nat") {
            // What cannot be read is nothing to send people after.
            if ip_tables::has_chain(family, table, chain).unwrap_or(false) {
                let verbs = [format!("-D {rule}"), format!("-F {chain}"), format!("-X {chain}")];
                commands.extend(verbs.map(|verb| format!("{program} -t {table} {verb}")));
            }
        }
    }
    let commands = Some(commands.join(" && ")).filter(|commands| !commands.is_empty())?;
    Some(format!("some are left in tables that are no part of nftables; run: {commands}"))
}
