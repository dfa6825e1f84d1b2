//! nftables on the real kernel. The `nft` program is the oracle: it reads our text and lists what we programmed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

mod drift;
mod elements;
mod foreign;
mod listing;
mod owned;
mod passage;
mod sample;
mod traffic;

use kernel::netns::Netns;
use kernel::nft::{Nft, Table};
use std::io::Write;
use std::process::{Command, Stdio};

fn fresh() -> Netns {
    Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace")
}

/// A fresh namespace with `table` in it.
fn with(table: &Table) -> (Netns, Nft) {
    let namespace = fresh();
    let mut nft = Nft::open_in(&namespace).unwrap();
    nft.replace(table).unwrap();
    (namespace, nft)
}

/// Runs the `nft` program in `namespace` and returns what it printed.
#[allow(clippy::disallowed_methods, reason = "the product starts no process; this test compares with another program")]
fn nft(namespace: &Netns, arguments: &[&str], input: &str) -> String {
    namespace
        .run(|| {
            let mut child = Command::new("nft")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the nft program is needed as the oracle: install the package nftables");
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "nft {arguments:?}: {complaint}\n{input}");
            String::from_utf8(output.stdout).unwrap()
        })
        .unwrap()
}
