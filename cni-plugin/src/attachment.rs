//! Names and marks of an attachment's kernel objects. All of them follow from the attachment's own name, so that DEL, CHECK
//! and GC find them without any state on disk.

use cni_spec::AttachmentId;
use kernel::Mac;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// Longest link alias (IFALIASZ less the terminating zero, linux/if.h).
const LONGEST_ALIAS: usize = 255;

/// What the aliases of all attachments' devices begin with.
pub(crate) const MARK: &str = "cni-plugin:";

/// Name of the host end of the veth pair: `veth` and 11 hexadecimal digits, 15 bytes in all (IFNAMSIZ). NetworkManager and
/// udev leave `veth*` alone.
pub(crate) fn host_veth(id: &AttachmentId) -> String {
    device("veth", id)
}

/// Name of the device in which what comes from the pod queues, if its bandwidth is limited.
pub(crate) fn ifb(id: &AttachmentId) -> String {
    device("ifb", id)
}

/// Names of all devices that the attachment may have on the host.
pub(crate) fn devices(id: &AttachmentId) -> [String; 2] {
    [host_veth(id), ifb(id)]
}

/// A name for files of the attachment: 32 hexadecimal digits.
pub(crate) fn key(container: &str, interface: &str) -> String {
    let digest = Sha256::new().chain_update(container).chain_update([0]).chain_update(interface).finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn device(prefix: &str, id: &AttachmentId) -> String {
    let digest = Sha256::new().chain_update(&id.container_id).chain_update([0]).chain_update(&id.ifname).finalize();
    let mut name = String::from(prefix);
    for byte in &digest[..6] {
        name.push_str(&format!("{byte:02x}"));
    }
    name.truncate(15);
    name
}

/// The alias that marks a device as ours, and as `network`'s: what a person reads in `ip link`, and what GC goes by.
pub(crate) fn alias(network: &str, id: &AttachmentId) -> String {
    let readable = format!("{}{}/{}", alias_prefix(network), id.container_id, id.ifname);
    if readable.len() <= LONGEST_ALIAS { readable } else { alias_prefix(network) }
}

/// What the aliases of all attachments of `network` begin with.
fn alias_prefix(network: &str) -> String {
    if network.len() <= 128 {
        return format!("{MARK}{network}:");
    }
    let digest: String = Sha256::digest(network).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{MARK}{digest}:")
}

/// Whether a link with `alias` is a device of an attachment to `network`.
pub(crate) fn is_of(network: &str, alias: &str) -> bool {
    alias.starts_with(&alias_prefix(network))
}

/// Whether a link with `alias` is a device of an attachment to another network than `network`.
pub(crate) fn is_of_another(network: &str, alias: &str) -> bool {
    alias.starts_with(MARK) && !is_of(network, alias)
}

/// The pod's MAC follows from its first address, so that a neighbour entry for a reused address, wherever it is cached,
/// is right at once (0a:58 and the four bytes for IPv4, as bridge plugins have long done).
pub(crate) fn pod_mac(address: Option<IpAddr>, id: &AttachmentId) -> Mac {
    match address {
        Some(IpAddr::V4(v4)) => {
            let [a, b, c, d] = v4.octets();
            Mac([0x0a, 0x58, a, b, c, d])
        }
        Some(IpAddr::V6(v6)) => Mac::derive(&format!("pod {v6}")),
        None => Mac::derive(&format!("pod {} {}", id.container_id, id.ifname)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container_id: &str, ifname: &str) -> AttachmentId {
        AttachmentId { container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn veth_names_are_stable_distinct_and_fit() {
        assert_eq!(host_veth(&id("abc", "eth0")), host_veth(&id("abc", "eth0")));
        assert_ne!(host_veth(&id("abc", "eth0")), host_veth(&id("abc", "eth1")));
        assert_ne!(host_veth(&id("ab", "ceth0")), host_veth(&id("abc", "eth0")));
        assert_eq!((host_veth(&id("abc", "eth0")).len(), ifb(&id("abc", "eth0")).len()), (15, 15));
        assert_ne!(ifb(&id("abc", "eth0")), ifb(&id("abc", "eth1")));
    }

    #[test]
    fn aliases_fit_and_keep_the_network_recognisable() {
        let long = "x".repeat(250);
        for network in ["cbr0", &long] {
            for container in ["abc", &long] {
                let alias = alias(network, &id(container, "eth0"));
                assert!(alias.len() <= LONGEST_ALIAS && alias.starts_with(&alias_prefix(network)), "{alias}");
            }
        }
        let alias = alias("cbr0x", &id("abc", "eth0"));
        assert!(is_of("cbr0x", &alias) && !is_of("cbr0", &alias) && is_of_another("cbr0", &alias));
        assert!(!is_of_another("cbr0", "uplink"), "not ours at all");
    }
}
