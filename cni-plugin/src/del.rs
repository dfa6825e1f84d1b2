//! DEL: idempotent, and content with less and less: no namespace, no link, no bridge, no record, no subnet file.

use crate::config::{self, Dialect};
use crate::teardown::{Failures, Remains};
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use ipam::host_local;
use std::net::IpAddr;
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
    let listed: Vec<IpAddr> =
        config.prev_result.iter().flat_map(|result| &result.ips).map(|ip| ip.address.ip()).collect();
    let mut failures = Failures::default();
    let addresses = match &ledger {
        None => listed,
        Some(dir) => host_local::addresses_left_by(dir, &config.name, id, &listed).unwrap_or_else(|error| {
            // A ledger that cannot be read keeps its addresses, but not the link.
            failures.note_cni(Err::<(), _>(error));
            Vec::new()
        }),
    };
    let ports = config::host_ports(dialect, config)?;
    let ports = ports.as_ref();
    let remains = Remains { id, network: &config.name, netns, bridge: &bridge, addresses: &addresses, ports };
    failures.note_cni(remains.remove());
    failures.into_result()?;
    ledger.map_or(Ok(()), |dir| host_local::del(&dir, &config.name, id))
}
