//! The chains that are compared.

use super::Plugins;
use super::side::{Side, node};
use crate::Result;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::path::Path;

/// A chain of ours and the one of the reference's that does the same.
pub(super) struct Shape {
    /// in file names
    pub(super) key: &'static str,
    /// in the table
    pub(super) name: &'static str,
    theirs: fn(&Path) -> Value,
    ours: fn(&Path) -> Value,
    /// how often it is measured, one at a time
    pub(super) rounds: usize,
    /// also many at once
    pub(super) crowded: bool,
    /// also beside the bare kernel work
    pub(super) probed: bool,
    /// the largest ratio of the medians that is wanted
    pub(super) wanted_add: f64,
    pub(super) wanted_del: f64,
}

impl Shape {
    pub(super) fn all() -> [Shape; 7] {
        let shape = |key, name, theirs, ours| {
            let (wanted_add, wanted_del) = (1.0 / 5.0, 1.0 / 12.0);
            Shape { key, name, theirs, ours, rounds: 40, crowded: false, probed: false, wanted_add, wanted_del }
        };
        // A whole chain replaces several executables, and what they start in turn.
        let chain = |shape: Shape| Shape { rounds: 12, wanted_add: 1.0 / 12.0, wanted_del: 1.0 / 30.0, ..shape };
        [
            Shape { crowded: true, ..shape("plain", "bridge + host-local", plain, plain) },
            Shape { probed: true, crowded: true, ..shape("native", "flannel-rs", plain, native) },
            shape("masquerade", "bridge + host-local + ipMasq", masquerade, masquerade),
            shape("bandwidth", "bridge + host-local + bandwidth", bandwidth, bandwidth),
            chain(shape("ports", "bridge + host-local + portmap (3 ports)", with_ports, with_ports)),
            chain(shape("kube", "kube-flannel's conflist (3 ports)", with_ports, kube_flannel)),
            Shape { crowded: true, ..chain(shape("whole", "flannel-rs with 3 ports and limits", whole, native_whole)) },
        ]
    }

    /// Both sides, theirs first, each on a node of its own.
    pub(super) fn sides(&self, plugins: &Plugins, directory: &Path) -> Result<(Side, Side)> {
        let theirs = side(&node()?, &directory.join("theirs"), &plugins.theirs, self.theirs)?;
        Ok((theirs, side(&node()?, &directory.join("ours"), &plugins.ours, self.ours)?))
    }
}

/// A chain on `node`; what it needs of files is made in `directory`.
pub(super) fn side(node: &Netns, directory: &Path, executables: &Path, chain: fn(&Path) -> Value) -> Result<Side> {
    std::fs::create_dir_all(directory)?;
    let lines = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.88.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    std::fs::write(directory.join("subnet.env"), lines)?;
    Side::new(node, directory, executables, chain(directory))
}

fn bridge(directory: &Path) -> Value {
    json!({
        "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "attachmentsDir": directory.join("attachments"),
        "ipam": {
            "type": "host-local", "dataDir": directory.join("networks"), "ranges": [[{"subnet": "10.88.0.0/16"}]],
        },
    })
}

fn portmap(directory: &Path) -> Value {
    json!({"type": "portmap", "hostPortsDir": directory.join("ports"), "capabilities": {"portMappings": true}})
}

fn limits() -> Value {
    json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})
}

fn plain(directory: &Path) -> Value {
    json!([bridge(directory)])
}

fn masquerade(directory: &Path) -> Value {
    let mut bridge = bridge(directory);
    bridge["ipMasq"] = true.into();
    json!([bridge])
}

fn bandwidth(directory: &Path) -> Value {
    json!([bridge(directory), limits()])
}

/// Also what kube-flannel's conflist comes to: the reference for it runs one executable less, since Debian has no package
/// of the meta plugin.
pub(super) fn with_ports(directory: &Path) -> Value {
    json!([bridge(directory), portmap(directory)])
}

fn whole(directory: &Path) -> Value {
    json!([bridge(directory), portmap(directory), limits()])
}

fn kube_flannel(directory: &Path) -> Value {
    let flannel = json!({
        "type": "flannel", "subnetFile": directory.join("subnet.env"), "dataDir": directory.join("flannel"),
        "delegate": {"bridge": "cbr0", "hairpinMode": true, "isDefaultGateway": true,
                     "attachmentsDir": directory.join("attachments")},
        "ipam": {"dataDir": directory.join("networks")},
    });
    json!([flannel, portmap(directory)])
}

fn native(directory: &Path) -> Value {
    json!([{
        "type": "flannel-rs", "bridge": "cbr0", "subnetFile": directory.join("subnet.env"),
        "dataDir": directory.join("networks"), "hostPortsDir": directory.join("ports"),
        "attachmentsDir": directory.join("attachments"),
    }])
}

pub(super) fn native_whole(directory: &Path) -> Value {
    let mut chain = native(directory);
    chain[0]["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    chain
}
