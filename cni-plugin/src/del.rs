//! DEL: idempotent, and content with less and less: no namespace, no link, no bridge, no record, no subnet file.

use crate::attachments::Attachments;
use crate::config::{self, Dialect};
use crate::teardown::{Failures, Remains};
use cni_spec::{Arguments, AttachmentId, CniError, NetworkConfig};
use std::net::IpAddr;
use std::path::Path;

/// Detaches, and releases the addresses last.
pub(crate) fn del(
    dialect: Dialect,
    id: &AttachmentId,
    netns: Option<&Path>,
    args: &Arguments,
    config: &NetworkConfig,
) -> Result<(), CniError> {
    let bridge = config::bridge_name(dialect, config)?;
    let keeper = config::keeper(dialect, config)?;
    let (ports, attachments) = (config::host_ports(dialect, config)?, Attachments::of(config)?);
    let listed: Vec<IpAddr> =
        config.prev_result.iter().flat_map(|result| &result.ips).map(|ip| ip.address.ip()).collect();
    let mut failures = Failures::default();
    let addresses = keeper.addresses_left_by(&config.name, id, listed).unwrap_or_else(|error| {
        // A ledger that cannot be read keeps its addresses, but not the link.
        failures.note_cni(Err::<(), _>(error));
        Vec::new()
    });
    failures.note_cni(keeper.part(id, netns, args, config));
    let (bridge, ports) = (bridge.as_deref(), ports.as_ref());
    let remains =
        Remains { id, network: &config.name, netns, bridge, addresses: &addresses, ports, attachments: &attachments };
    failures.note_cni(remains.remove());
    failures.into_result()?;
    keeper.release(&config.name, id)
}
