//! Chains are taken out of iptables' tables, and nothing else is.

use super::fresh;
use kernel::netns::Netns;
use kernel::nft::{Family, Nft};
use std::process::Command;

/// Runs a program that works on a namespace's iptables, and returns what it printed.
#[allow(clippy::disallowed_methods, reason = "the product starts no process; this test needs somebody else's rules")]
fn run(namespace: &Netns, line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = namespace.run(|| Command::new(program).args(words).output()).unwrap();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (install the package iptables)"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The rules without counters, and without the comments that tell the time.
fn rules(namespace: &Netns) -> Vec<String> {
    let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|program| run(namespace, program));
    saved.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn a_chain_goes_with_what_leads_to_it_and_nothing_else_does() {
    let namespace = fresh();
    let others = [
        "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-t nat -N MINE",
        "-t nat -A MINE -m comment --comment FLANNEL-POSTRTG -j RETURN",
        "-t nat -A POSTROUTING -j MINE",
        "-t filter -N FLANNEL-POSTRTG-NOT",
        "-t filter -A FORWARD -j FLANNEL-POSTRTG-NOT",
        "-t filter -N FLANNEL-POSTRTG",
        "-t filter -A FORWARD -j FLANNEL-POSTRTG",
    ];
    for rule in others {
        run(&namespace, &format!("iptables-nft {rule}"));
    }
    let before = rules(&namespace);
    let mut nft = Nft::open_in(&namespace).unwrap();
    let mut delete = || nft.delete_foreign_chain(Family::Ip, "nat", "FLANNEL-POSTRTG").unwrap();
    assert!(!delete());
    for rule in [
        "-N FLANNEL-POSTRTG",
        "-I POSTROUTING 1 -m comment --comment flanneld -j FLANNEL-POSTRTG",
        "-A MINE -g FLANNEL-POSTRTG",
        "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
        "-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
    ] {
        run(&namespace, &format!("iptables-nft -t nat {rule}"));
    }
    assert_eq!(rules(&namespace).len(), before.len() + 5);
    assert!(delete());
    assert_eq!(rules(&namespace), before);
    assert!(!delete());
    assert!(!nft.delete_foreign_chain(Family::Ip6, "nat", "FLANNEL-POSTRTG").unwrap(), "there is no such table");
    assert_eq!(rules(&namespace), before);
}

#[test]
fn what_drops_behind_the_way_to_a_chain_is_seen() {
    for (rules, wanted) in [
        (&["-P FORWARD ACCEPT", "-A FORWARD -j OURS"][..], false),
        (&["-A FORWARD -s 192.0.2.1 -j DROP", "-A FORWARD -j OURS", "-A FORWARD -j MINE"], false),
        (&["-A FORWARD -j OURS", "-A FORWARD -j DROP"], true),
        (&["-A FORWARD -j OURS", "-A FORWARD -i eth1 -j REJECT"], true),
        (&["-P FORWARD DROP", "-A FORWARD -j OURS"], true),
    ] {
        let namespace = fresh();
        for rule in [&["-N OURS", "-N MINE", "-A MINE -j DROP"][..], rules].concat() {
            run(&namespace, &format!("iptables-nft {rule}"));
        }
        let mut nft = Nft::open_in(&namespace).unwrap();
        assert_eq!(nft.drops_after(Family::Ip, "filter", "FORWARD", "OURS").unwrap(), wanted, "{rules:?}");
    }
}
