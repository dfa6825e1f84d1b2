//! What the runtime remembers of each attachment, in the files of libcni (`cniCacheV1`), which other tools read as well.

use super::{Attachment, Network};
use crate::Result;
use cni_spec::{AddResult, SpecVersion};
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

fn file(cache: &Path, network: &Network, attachment: &Attachment) -> PathBuf {
    cache.join(format!("{}-{}-{}", network.name(), attachment.id, attachment.ifname))
}

/// Remembers the result of ADD, and with what it was called.
pub(super) fn remember(cache: &Path, network: &Network, attachment: &Attachment, result: &Value) -> Result<()> {
    let args: Vec<Value> =
        attachment.args.split(';').filter_map(|pair| pair.split_once('=')).map(|pair| json!(pair)).collect();
    let entry = json!({
        "kind": "cniCacheV1",
        "containerId": attachment.id,
        // libcni has the text here, in base64.
        "config": network.list(),
        "ifName": attachment.ifname,
        "networkName": network.name(),
        "netns": attachment.netns,
        "cniArgs": args,
        "capabilityArgs": attachment.capabilities,
        "result": result,
    });
    fs::create_dir_all(cache)?;
    Ok(fs::write(file(cache, network, attachment), entry.to_string())?)
}

/// The result of the last ADD of this attachment, in the version that the network has now.
pub(super) fn result(cache: &Path, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
    let text = match fs::read(file(cache, network, attachment)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let result = serde_json::from_slice::<Value>(&text)?["result"].take();
    let told: Option<SpecVersion> = result["cniVersion"].as_str().and_then(|text| text.parse().ok());
    match told {
        Some(told) if told != network.spoken() => {
            let known = AddResult::from_json(&result, told).map_err(|error| error.msg)?;
            Ok(Some(known.to_json(network.spoken()).map_err(|error| error.msg)?))
        }
        _ => Ok(Some(result)),
    }
}

/// Forgets an attachment.
pub(super) fn forget(cache: &Path, network: &Network, attachment: &Attachment) -> Result<()> {
    match fs::remove_file(file(cache, network, attachment)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The attachments of `network` that are remembered, as they were called.
pub(super) fn attachments(cache: &Path, network: &Network) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache).into_iter().flatten() {
        let known: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        if known["networkName"] != network.name() {
            continue;
        }
        let text = |key: &str| known[key].as_str().unwrap_or_default().to_owned();
        let pair = |pair: &Value| Some(format!("{}={}", pair[0].as_str()?, pair[1].as_str()?));
        let args: Vec<String> = known["cniArgs"].as_array().into_iter().flatten().filter_map(pair).collect();
        found.push(Attachment {
            id: text("containerId"),
            ifname: text("ifName"),
            netns: known["netns"].as_str().map(PathBuf::from),
            args: args.join(";"),
            capabilities: known["capabilityArgs"].as_object().cloned().unwrap_or_default(),
        });
    }
    found.sort_by(|one, other| (&one.id, &one.ifname).cmp(&(&other.id, &other.ifname)));
    Ok(found)
}
