//! The text, and what `nft list` makes of what we programmed.

use crate::{fresh, nft, sample, with};
use kernel::nft::{Family, Table};
use std::fs;
use std::path::Path;

/// Compares with the file, or writes it where UPDATE_GOLDEN is set.
fn golden(file: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).expect("a golden file (UPDATE_GOLDEN=1 writes it)");
    assert_eq!(actual, expected, "{} differs; look, then UPDATE_GOLDEN=1", path.display());
}

fn list(namespace: &kernel::netns::Netns, table: &Table) -> String {
    let family = match table.family {
        Family::Ip => "ip",
        Family::Ip6 => "ip6",
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    };
    nft(namespace, &["list", "table", family, &table.name], "")
}

/// A listing without the hashes behind the comments.
fn without_hashes(listing: &str) -> String {
    let line = |line: &str| match line.split_once(" comment \"") {
        Some((before, comment)) => match comment.rsplit_once('#') {
            Some(("", _)) => before.to_owned(),
            Some((comment, _)) => format!("{before} comment \"{}\"", comment.trim_end()),
            None => line.to_owned(),
        },
        None => line.to_owned(),
    };
    listing.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Our text and nft's listing are as recorded; and what nft programs from our text lists just as what we programmed.
fn agrees(name: &str, table: &Table) {
    golden(&format!("{name}.nft"), &table.to_string());
    let (ours, _nft) = with(table);
    let listing = list(&ours, table);
    let theirs = fresh();
    nft(&theirs, &["-f", "-"], &table.to_string());
    assert_eq!(without_hashes(&listing), without_hashes(&list(&theirs, table)));
    golden(&format!("{name}.listing"), &listing);
}

#[test]
fn masquerade_of_ipv4_is_what_nft_would_program() {
    agrees("masquerade_ipv4", &sample::masquerade_ipv4());
}

#[test]
fn masquerade_of_ipv6_is_what_nft_would_program() {
    agrees("masquerade_ipv6", &sample::masquerade_ipv6());
}

#[test]
fn host_ports_are_what_nft_would_program() {
    agrees("host_ports", &sample::host_ports());
}

#[test]
fn a_guard_of_bridge_ports_is_what_nft_would_program() {
    agrees("bridge_ports", &sample::bridge_ports());
}

#[test]
fn every_match_and_action_is_what_nft_would_program() {
    agrees("everything", &sample::everything());
}
