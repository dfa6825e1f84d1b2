//! GC: releases every attachment of the network that the runtime does not list as valid. What exists is read from the
//! kernel (links that carry our mark, neighbour entries of the bridge) and from the ledger; neither needs the other.

use crate::allocation::Keeper;
use crate::attachment;
use crate::attachments::Attachments;
use crate::config::{self, Dialect};
use crate::plugin::kernel_error;
use crate::teardown::Failures;
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use ipam::host_local;
use kernel::detached;
use kernel::netlink::{Link, Netlink};
use std::collections::BTreeSet;

/// Collects what no valid attachment owns: links, then neighbour entries, then addresses.
pub(crate) fn gc(dialect: Dialect, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
    let bridge = config::bridge_name(dialect, config)?;
    let keeper = config::keeper(dialect, config)?;
    let mut failures = Failures::default();
    if let Some(ports) = config::host_ports(dialect, config)? {
        failures.note_cni(ports.collect(&config.name, valid));
    }
    let mut host = Netlink::open().map_err(kernel_error)?;

    remove_links(&mut host, &config.name, valid, |_| true, &mut failures)?;
    failures.note_cni(Attachments::of(config)?.collect(&config.name, valid));
    let bridge = bridge.map(|bridge| host.link(&bridge)).transpose().map_err(kernel_error)?.flatten();
    if let (Keeper::Ledger(dir), Some(bridge)) = (&keeper, bridge) {
        match host_local::addresses_of_others(dir, &config.name, valid) {
            Ok(addresses) => {
                addresses.into_iter().for_each(|address| failures.note(host.delete_neighbour(bridge.index, address)))
            }
            Err(error) => failures.note_cni(Err::<(), _>(error)),
        }
    }
    failures.note_cni(keeper.gc(config, valid));
    failures.into_result()
}

/// Removes the devices that carry `network`'s mark, are `wanted`, and belong to none of the `valid` attachments.
pub(crate) fn remove_links(
    host: &mut Netlink,
    network: &str,
    valid: &[AttachmentId],
    wanted: impl Fn(&Link) -> bool,
    failures: &mut Failures,
) -> Result<(), CniError> {
    let living: BTreeSet<String> = valid.iter().flat_map(attachment::devices).collect();
    for link in host.links().map_err(kernel_error)? {
        if attachment::is_of(network, &link.alias) && !living.contains(&link.name) && wanted(&link) {
            failures.note(detached::delete_found(host, &link));
        }
    }
    Ok(())
}
