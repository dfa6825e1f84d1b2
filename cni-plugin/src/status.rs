//! STATUS: would an ADD work now?

use crate::bandwidth::limits::Limits;
use crate::config::{Dialect, Gateway, PluginConfig};
use crate::host_ports::HostPorts;
use crate::plugin::kernel_error;
use cni_spec::{Arguments, CniError, Code, NetworkConfig};
use kernel::netlink::{LinkKind, Netlink};
use kernel::nft::Nft;
use kernel::sysctl;

/// Fails with "not available" (50) and the reason: the subnet file is missing or unusable, no address is free, the kernel
/// lacks what the configuration asks for, the bridge's name is taken. With 51, which says that running pods suffer too, where
/// packets are not forwarded and that cannot be changed.
pub(crate) fn status(dialect: Dialect, config: &NetworkConfig) -> Result<(), CniError> {
    let parsed = PluginConfig::parse(dialect, config, &Arguments::new()).map_err(unavailable)?;
    if parsed.gateway != Gateway::None {
        forwarding()?;
    }
    devices(parsed.bridge.as_deref(), &parsed.limits).map_err(unavailable)?;
    if parsed.masquerade.is_some() || parsed.guarded {
        nftables().map_err(unavailable)?;
    }
    if let Some(ports) = &parsed.ports {
        HostPorts::recorded_in(&ports.directory).status().map_err(unavailable)?;
    }
    parsed.ipam.status(config).map_err(unavailable)
}

/// The same reason as STATUS tells it: 50, unless it is 51 already.
pub(crate) fn unavailable(error: CniError) -> CniError {
    match error.code.number() {
        51 => error,
        _ => CniError { code: Code::NotAvailable, ..error },
    }
}

/// A node that does not forward cuts its pods off, also those that it has.
fn forwarding() -> Result<(), CniError> {
    sysctl::settable("net/ipv4/ip_forward", "1").map_err(|error| {
        let text =
            format!("{error}: pods reach nothing but each other; set it on the node, or make /proc/sys writable");
        CniError::new(Code::LimitedConnectivity, text)
    })
}

/// Whether the bridge is there or can be made, and so the device that limits need.
pub(crate) fn devices(bridge: Option<&str>, limits: &Limits) -> Result<(), CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut needed = Vec::new();
    if let Some(name) = bridge {
        match host.link(name).map_err(kernel_error)? {
            Some(link) if link.kind == LinkKind::Bridge => {}
            Some(_) => {
                let text = format!("{name} exists but is no bridge: delete it, or name another bridge");
                return Err(CniError::new(Code::Kernel, text));
            }
            None => needed.push("bridge"),
        }
    }
    needed.extend(limits.egress.map(|_| "ifb"));
    for kind in needed {
        if !host.supports(kind).map_err(kernel_error)? {
            return Err(CniError::new(Code::Kernel, format!("the kernel lacks {kind} devices: modprobe {kind}")));
        }
    }
    Ok(())
}

/// Whether there are nftables.
pub(crate) fn nftables() -> Result<(), CniError> {
    Nft::open().and_then(|mut nft| nft.generation()).map(drop).map_err(kernel_error)
}
