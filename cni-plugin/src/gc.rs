//! GC: releases every attachment of the network that the runtime does not list as valid. What exists is read from the
//! kernel (links that carry our mark, neighbour entries of the bridge) and from the ledger; neither needs the other.

use crate::attachment;
use crate::config::{self, Dialect, PluginConfig};
use crate::plugin::kernel_error;
use crate::teardown::Failures;
use cni_spec::{Arguments, AttachmentId, CniError, NetworkConfig};
use ipam::host_local;
use kernel::detached;
use kernel::netlink::Netlink;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Collects what no valid attachment owns: links, then neighbour entries, then addresses.
pub(crate) fn gc(dialect: Dialect, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
    let bridge = config::bridge_name(dialect, config)?;
    let ledger = config::ledger(dialect, config)?;
    let mut failures = Failures::default();
    let mut host = Netlink::open().map_err(kernel_error)?;

    let living: BTreeSet<String> = valid.iter().map(attachment::host_veth).collect();
    for link in host.links().map_err(kernel_error)? {
        if attachment::is_of(&config.name, &link.alias) && !living.contains(&link.name) {
            failures.note(detached::delete_found(&mut host, &link));
        }
    }
    let Some(dir) = ledger else { return failures.into_result() };
    if let Some(bridge) = host.link(&bridge).map_err(kernel_error)? {
        // Listed before the ledger is read: an ADD that comes in between reserves first.
        let neighbours = host.neighbours(Some(bridge.index)).map_err(kernel_error)?;
        let stale: BTreeSet<IpAddr> = host_local::addresses_of_others(&dir, &config.name, valid)?.into_iter().collect();
        let reserved = host_local::reserved(&dir, &config.name)?;
        // The ranges tell the network's own addresses from those of other networks on the bridge.
        let ipam = PluginConfig::parse(dialect, config, &Arguments::new()).ok().and_then(|parsed| parsed.ipam);
        let in_range = |ip| ipam.iter().flat_map(|ipam| &ipam.sets).any(|set| set.range_of(ip).is_some());
        for neighbour in neighbours.iter().filter(|neighbour| neighbour.permanent) {
            let ip = neighbour.ip;
            // Where the records were wiped, the address itself and the MAC that follows from it tell a pod's entry.
            let forgotten = || {
                !reserved.contains(&ip)
                    && in_range(ip)
                    && neighbour.mac.is_some_and(|mac| attachment::is_pod_mac(mac, ip))
            };
            if stale.contains(&ip) || forgotten() {
                failures.note(host.delete_neighbour(bridge.index, ip));
            }
        }
    }
    failures.note_cni(host_local::gc(&dir, &config.name, valid));
    failures.into_result()
}
