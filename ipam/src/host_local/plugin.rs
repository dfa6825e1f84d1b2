//! The plugin as an executable serves it.

use super::{HostLocal, config};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, Sandbox};
use std::path::Path;

/// `host-local`: the configuration's `ipam` object says what to hand out.
#[derive(Clone, Copy, Debug)]
pub struct Plugin;

impl cni_spec::Plugin for Plugin {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let ipam = HostLocal::parse(config, &sandbox.args)?;
        // Whoever wires the pods sees to what is left of them.
        super::add(&ipam, &config.name, sandbox, &|_, _| Ok(()))
    }

    /// Needs to know the directory only: a pool that has been reconfigured in the meantime keeps nobody from leaving.
    fn del(&self, id: &AttachmentId, _: Option<&Path>, _: &Arguments, config: &NetworkConfig) -> Result<(), CniError> {
        super::del(&config::data_dir(config)?, &config.name, id)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let ipam = HostLocal::parse(config, &sandbox.args)?;
        super::check(&ipam, &config.name, &sandbox.id)?;
        let listed = config.prev_result.iter().flat_map(|result| &result.ips).map(|ip| ip.address.ip());
        let ours: Vec<_> = listed.filter(|ip| ipam.sets.iter().any(|set| set.range_of(*ip).is_some())).collect();
        super::check_held(&ipam.data_dir, &config.name, &sandbox.id, &ours)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        super::gc(&config::data_dir(config)?, &config.name, valid)
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        super::status(&HostLocal::parse(config, &Arguments::new())?, &config.name)
    }
}
