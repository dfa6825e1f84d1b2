//! What Debian's own tools say about a namespace. Tests judge the product by these and not by its own eyes; neither the
//! demo nor the harness needs them.

use crate::{Result, tools};
use kernel::netns::Netns;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a tool inside `network`; what it printed. The error quotes what it complained about.
pub fn tool(network: &Netns, path: &str, package: &str, args: &[&str]) -> Result<String> {
    let executable = tools::from_package(path, package)?;
    let output = network.run(|| Command::new(executable).args(args).output())??;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{path} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// `ip <args>`, for changes behind the product's back.
pub fn ip(network: &Netns, args: &str) -> Result<()> {
    tool(network, "/sbin/ip", "iproute2", &args.split_whitespace().collect::<Vec<_>>()).map(|_| ())
}

/// `bridge <args>`, for FDB entries.
pub fn bridge(network: &Netns, args: &str) -> Result<String> {
    tool(network, "/sbin/bridge", "iproute2", &args.split_whitespace().collect::<Vec<_>>())
}

/// `tc <args>`, for queues and filters.
pub fn tc(network: &Netns, args: &str) -> Result<String> {
    tool(network, "/sbin/tc", "iproute2", &args.split_whitespace().collect::<Vec<_>>())
}

/// `nft <args>`.
pub fn nft(network: &Netns, args: &str) -> Result<String> {
    tool(network, "/usr/sbin/nft", "nftables", &args.split_whitespace().collect::<Vec<_>>())
}

/// `ip -json <args>`: a list.
pub fn ip_list(network: &Netns, args: &str) -> Result<Vec<Value>> {
    let args: Vec<&str> = ["-json"].into_iter().chain(args.split_whitespace()).collect();
    let text = tool(network, "/sbin/ip", "iproute2", &args)?;
    // With nothing to list, some versions print nothing at all.
    if text.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str(&text)?) }
}

/// The names of all network devices.
pub fn links(network: &Netns) -> Result<BTreeSet<String>> {
    let list = ip_list(network, "link show")?;
    Ok(list.iter().filter_map(|link| link["ifname"].as_str()).map(str::to_owned).collect())
}

/// Every file under `directory` with its content as far as it is text; a directory that is absent has none.
pub fn files(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            let content = fs::read(&path).unwrap_or_default();
            found.push((path.display().to_string(), String::from_utf8_lossy(&content).into_owned()));
        }
    }
    found.sort();
    Ok(found)
}
