//! DEL: idempotent, and content with less and less: no namespace, no link, no bridge, no record, no subnet file.

use crate::allocation::Keeper;
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
    detach(&config::keeper(dialect, config)?, dialect, id, netns, args, config)
}

fn detach(
    keeper: &Keeper,
    dialect: Dialect,
    id: &AttachmentId,
    netns: Option<&Path>,
    args: &Arguments,
    config: &NetworkConfig,
) -> Result<(), CniError> {
    let bridge = config::bridge_name(dialect, config)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::{alias, host_veth};
    use crate::delegate::{Delegate, Executable};
    use cni_spec::Code;
    use kernel::netlink::{Netlink, VethSpec};
    use kernel::netns::Netns;
    use std::process::Command;
    use std::time::Duration;

    /// Whatever becomes of the addresses, nobody is led to a pod that is gone.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a plugin of somebody else's")]
    fn what_is_ours_goes_though_the_plugin_for_addresses_hangs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("addresses");
        // Not written by this process, whose other tests start some that would have the file open, too (ETXTBSY).
        let write = r#"printf '#!/bin/sh\nsleep 1000\nexit 0\n' >"$0"; chmod 755 "$0""#;
        assert!(Command::new("/bin/sh").args(["-c", write]).arg(&path).status().unwrap().success());
        let executable = Executable { path, limit: |_| Duration::from_millis(200) };
        let keeper = Keeper::Delegated(Delegate::Executable(executable));
        let attachments = directory.path().join("attachments");
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "net", "type": "bridge", "attachmentsDir": attachments,
            "ipam": {"type": "addresses"},
        });
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
        let id = AttachmentId { container_id: "box".into(), ifname: "eth0".into() };
        let (node, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
        let _inside = node.enter().unwrap();
        let mut host = Netlink::open().unwrap();
        let (name, mark) = (host_veth(&id), alias("net", &id));
        host.create_veth(&VethSpec { alias: &mark, ..VethSpec::new(&name, "eth0", &pod) }).unwrap();
        let outcome = detach(&keeper, Dialect::Bridge, &id, Some(&pod.path()), &Arguments::default(), &config);
        let (error, is_there) = (outcome.unwrap_err(), host.link(&name).unwrap().is_some());
        assert_eq!((error.code, is_there), (Code::TryAgain, false), "{error:?}");
        assert!(error.msg.contains("DEL took more than"), "{error:?}");
    }
}
