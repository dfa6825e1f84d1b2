//! The rules as people read them: golden files of nft's own language. What the kernel makes of it is tested in `kernel`, and
//! what packets make of it in `e2e`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::firewall::{Policy, tables};
use ipnetwork::IpNetwork;

fn networks(texts: &[&str]) -> PerFamily<IpNetwork> {
    let parsed = texts.iter().map(|text| text.parse::<IpNetwork>().unwrap());
    parsed.map(|network| (Family::of(network.ip()), network)).collect()
}

fn text(policy: Policy, cluster: &[&str], own: &[&str]) -> String {
    tables(policy, &networks(cluster), &networks(own)).iter().map(ToString::to_string).collect()
}

#[test]
fn rules_are_as_in_the_golden_files() {
    let all = Policy { masquerade: true, fully_random: true, forward: true, refuse_own: false };
    for (name, policy, cluster, own) in [
        ("dual-stack", all, &["10.5.0.0/16", "fd00:5::/48"][..], &["10.5.1.0/24", "fd00:5:0:1::/64"][..]),
        ("forward-only", Policy { masquerade: false, ..all }, &["10.5.0.0/16"], &["10.5.1.0/24"]),
        ("plain-ports", Policy { fully_random: false, forward: false, ..all }, &["10.5.0.0/16"], &["10.5.1.0/24"]),
    ] {
        let path = format!("{}/tests/golden/firewall-{name}.nft", env!("CARGO_MANIFEST_DIR"));
        let text = text(policy, cluster, own);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}: make golden writes it anew");
    }
}

#[test]
fn nothing_wanted_is_no_table() {
    let nothing = Policy { masquerade: false, fully_random: true, forward: false, refuse_own: false };
    assert_eq!(text(nothing, &["10.5.0.0/16"], &["10.5.1.0/24"]), "");
}
