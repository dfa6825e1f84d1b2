//! The loopback plugin: brings `lo` up. Runtimes run it for every sandbox.

use crate::add::open_sandbox;
use crate::plugin::kernel_error;
use cni_spec::{
    AddResult, Arguments, AttachmentId, CniError, Code, Interface, IpAssignment, NetworkConfig, Plugin, Sandbox,
};
use kernel::netlink::{Link, LinkChange, Netlink};
use kernel::netns::Netns;
use std::path::Path;

/// `type: loopback`
pub(crate) struct Loopback;

impl Plugin for Loopback {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let mut pod = Netlink::open_in(&open_sandbox(sandbox)?).map_err(kernel_error)?;
        let link = lo(&mut pod)?;
        pod.set_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() }).map_err(kernel_error)?;
        // In a chain the result of the earlier plugins is handed on.
        if let Some(previous) = &config.prev_result {
            return Ok(previous.clone());
        }
        let addresses = pod.addresses_of(link.index).map_err(kernel_error)?;
        Ok(AddResult {
            interfaces: vec![Interface {
                name: link.name,
                mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                sandbox: sandbox.netns.display().to_string(),
                ..Interface::default()
            }],
            ips: addresses
                .into_iter()
                .map(|address| IpAssignment { interface: Some(0), address, gateway: None })
                .collect(),
            ..AddResult::default()
        })
    }

    fn del(
        &self,
        _id: &AttachmentId,
        netns: Option<&Path>,
        _args: &Arguments,
        _config: &NetworkConfig,
    ) -> Result<(), CniError> {
        // A namespace that is gone, or was never known, has no loopback to bring down.
        let Some(netns) = netns.and_then(|path| Netns::open(path).ok()) else { return Ok(()) };
        if netns.id() == Netns::current().map_err(kernel_error)?.id() {
            return Ok(());
        }
        let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;
        let link = lo(&mut pod)?;
        pod.set_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() }).map_err(kernel_error)
    }

    fn check(&self, sandbox: &Sandbox, _config: &NetworkConfig) -> Result<(), CniError> {
        let mut pod = Netlink::open_in(&open_sandbox(sandbox)?).map_err(kernel_error)?;
        if lo(&mut pod)?.up { Ok(()) } else { Err(CniError::new(Code::CheckFailed, "lo in the sandbox is down")) }
    }

    fn gc(&self, _config: &NetworkConfig, _valid: &[AttachmentId]) -> Result<(), CniError> {
        // It makes nothing that could be left over.
        Ok(())
    }

    fn status(&self, _config: &NetworkConfig) -> Result<(), CniError> {
        Ok(())
    }
}

fn lo(pod: &mut Netlink) -> Result<Link, CniError> {
    pod.link("lo")
        .map_err(kernel_error)?
        .ok_or_else(|| CniError::new(Code::Kernel, "the sandbox has no lo: is CNI_NETNS a network namespace?"))
}
