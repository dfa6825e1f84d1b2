//! The portmap plugin, chained behind one that gives the pod its addresses: ports of the host that lead to the pod.

use crate::attachments;
use crate::check;
use crate::host_ports::{self, HostPortConfig, HostPorts, Record};
use crate::status::unavailable;
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use ipnetwork::IpNetwork;
use std::path::Path;

/// `type: portmap`
pub(crate) struct PortMap;

impl Plugin for PortMap {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let (ports, record) = wanted(sandbox, config)?;
        ports.publish(&record)?;
        Ok(config.prev_result.clone().unwrap_or_default())
    }

    fn del(
        &self,
        id: &AttachmentId,
        _netns: Option<&Path>,
        _args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        recorded(config)?.withdraw(id)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let (ports, record) = wanted(sandbox, config)?;
        check::verdict(ports.differences(&record)?)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        recorded(config)?.collect(&config.name, valid)
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        HostPortConfig::parse(config).map_err(unavailable)?;
        recorded(config)?.status().map_err(unavailable)
    }
}

/// All that is needed of the configuration to find what is there.
fn recorded(config: &NetworkConfig) -> Result<HostPorts, CniError> {
    Ok(HostPorts::recorded_in(host_ports::directory(config)?))
}

/// What the configuration and the result of the plugins before us ask for.
fn wanted(sandbox: &Sandbox, config: &NetworkConfig) -> Result<(HostPorts, Record), CniError> {
    let parsed = HostPortConfig::parse(config)?;
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(
            Code::InvalidConfig,
            "portmap must be called as chained plugin: it needs a prevResult, which tells the pod's addresses",
        ));
    };
    let forwards = parsed.forwards(&pod_addresses(previous, &sandbox.id.ifname))?;
    let record = Record { pod: attachments::pod(&sandbox.args), ..Record::of(&config.name, &sandbox.id, forwards) };
    Ok((HostPorts::recorded_in(parsed.directory), record))
}

/// The addresses of the result that are the pod's: all but those that it puts on another interface, or on the host.
fn pod_addresses(result: &AddResult, ifname: &str) -> Vec<IpNetwork> {
    let pods = result.ips.iter().filter(|ip| {
        result.interface_of(ip).is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    });
    pods.map(|ip| ip.address).collect()
}
