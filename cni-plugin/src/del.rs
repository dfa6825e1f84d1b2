//! DEL: idempotent, and content with less and less: no namespace, no link, no bridge, no record, no subnet file.

use crate::config::{self, Dialect};
use crate::teardown::Remains;
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use ipam::host_local;
use std::path::Path;

/// Detaches, and releases the addresses last.
pub(crate) fn del(
    dialect: Dialect,
    id: &AttachmentId,
    netns: Option<&Path>,
    config: &NetworkConfig,
) -> Result<(), CniError> {
    let bridge = config::bridge_name(dialect, config)?;
    let ledger = config::ledger(dialect, config)?;
    let mut addresses = match &ledger {
        Some(dir) => host_local::addresses_of(dir, &config.name, id)?,
        None => Vec::new(),
    };
    if let Some(previous) = &config.prev_result {
        addresses.extend(previous.ips.iter().map(|ip| ip.address.ip()));
    }
    Remains { id, netns, bridge: &bridge, addresses: &addresses }.remove()?;
    ledger.map_or(Ok(()), |dir| host_local::del(&dir, &config.name, id))
}
