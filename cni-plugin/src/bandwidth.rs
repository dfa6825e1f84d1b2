//! The bandwidth plugin: limits what an earlier plugin of the chain has attached. `flannel-rs` has the same built in.

pub(crate) mod limits;
pub(crate) mod shaper;

use crate::add::open_sandbox;
use crate::plugin::kernel_error;
use crate::status::{devices, unavailable};
use crate::teardown::Failures;
use crate::{check, gc};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use kernel::netlink::{Link, LinkKind, Netlink};
use limits::Limits;
use std::path::Path;

/// `type: bandwidth`
pub(crate) struct Bandwidth;

impl Plugin for Bandwidth {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let limits = Limits::parse(config)?;
        let mut result = previous(config)?.clone();
        if !limits.is_empty() {
            let mut host = Netlink::open().map_err(kernel_error)?;
            let end = host_end(sandbox, &mut host)?;
            let device = shaper::limit(&mut host, &config.name, &sandbox.id, &end, &limits).map_err(kernel_error)?;
            result.interfaces.extend(device);
        }
        Ok(result)
    }

    fn del(
        &self,
        id: &AttachmentId,
        _netns: Option<&Path>,
        _args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        let mut host = Netlink::open().map_err(kernel_error)?;
        shaper::remove(&mut host, &config.name, id).map(drop).map_err(kernel_error)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let limits = Limits::parse(config)?;
        let mut host = Netlink::open().map_err(kernel_error)?;
        let end = host_end(sandbox, &mut host)?;
        let differences = shaper::differences(&mut host, &sandbox.id, &end, &limits).map_err(kernel_error)?;
        check::verdict(differences)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        let mut failures = Failures::default();
        let mut host = Netlink::open().map_err(kernel_error)?;
        // The pairs, if they are ours at all, are the business of the plugin that made them.
        let is_ifb = |link: &Link| link.kind == LinkKind::Other("ifb".into());
        gc::remove_links(&mut host, &config.name, valid, is_ifb, &mut failures)?;
        failures.into_result()
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        let limits = Limits::parse(config).map_err(unavailable)?;
        devices(None, &limits).map_err(unavailable)
    }
}

fn previous(config: &NetworkConfig) -> Result<&AddResult, CniError> {
    let missing =
        || CniError::new(Code::InvalidConfig, "bandwidth limits what an earlier plugin made: put it after one");
    config.prev_result.as_ref().ok_or_else(missing)
}

/// The host's end of the pair whose other end is the pod's interface: found by the pair itself, since a result does not tell
/// which of its interfaces that is.
fn host_end(sandbox: &Sandbox, host: &mut Netlink) -> Result<Link, CniError> {
    let name = &sandbox.id.ifname;
    let mut pod = Netlink::open_in(&open_sandbox(sandbox)?).map_err(kernel_error)?;
    let link = pod.link(name).map_err(kernel_error)?;
    let missing = || CniError::new(Code::Kernel, format!("there is no {name} in the sandbox whose bandwidth to limit"));
    let far = link.ok_or_else(missing)?;
    let near = match far.peer {
        Some(peer) => host.link_by_index(peer).map_err(kernel_error)?,
        None => None,
    };
    // Numbers are unique in their namespace only: the pair must agree in both directions.
    near.filter(|near| near.kind == LinkKind::Veth && near.peer == Some(far.index)).ok_or_else(|| {
        CniError::new(
            Code::Kernel,
            format!("{name} in the sandbox is no veth with its other end on the host: only those can be limited"),
        )
    })
}
