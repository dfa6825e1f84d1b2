//! Who manages a network's addresses: our own ledger in process, another plugin, or nobody.

use crate::catalogue::Role;
use crate::delegate::Delegate;
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Sandbox};
use ipam::host_local::{self, HostLocal, Undertaker};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What ADD, CHECK and STATUS need.
pub(crate) enum Allocation {
    /// a plain layer 2 attachment
    None,
    /// the ledger
    HostLocal(HostLocal),
    /// another plugin
    Delegated(Delegate),
}

/// What DEL and GC need, whatever else the configuration has become in the meantime.
pub(crate) enum Keeper {
    /// nobody
    None,
    /// the ledger's directory
    Ledger(PathBuf),
    /// another plugin
    Delegated(Delegate),
}

impl Allocation {
    /// What `ipam` of `config` asks for.
    pub(crate) fn parse(config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        Ok(match ipam_type(config)? {
            None => Allocation::None,
            Some("host-local") => Allocation::HostLocal(HostLocal::parse(config, args)?),
            Some(other) => Allocation::Delegated(Delegate::find("ipam.type", other, Role::Addresses)?),
        })
    }

    /// The attachment's addresses, routes and name resolution. Where only the dead can make room, `undertaker` sees to what
    /// is left of them.
    pub(crate) fn add(
        &self,
        sandbox: &Sandbox,
        config: &NetworkConfig,
        undertaker: Undertaker<'_>,
    ) -> Result<AddResult, CniError> {
        match self {
            Allocation::None => Ok(AddResult::default()),
            Allocation::HostLocal(ipam) => host_local::add(ipam, &config.name, sandbox, undertaker),
            Allocation::Delegated(delegate) => {
                let result = delegate.plugin().add(sandbox, config)?;
                if result.ips.is_empty() {
                    let _ = self.undo(sandbox, config, &[]);
                    return Err(CniError::new(Code::InvalidConfig, "IPAM plugin returned missing IP config"));
                }
                Ok(result)
            }
        }
    }

    /// Undoes [`Allocation::add`], which gave `addresses`.
    pub(crate) fn undo(&self, sandbox: &Sandbox, config: &NetworkConfig, addresses: &[IpAddr]) -> Result<(), CniError> {
        match self {
            Allocation::None => Ok(()),
            Allocation::HostLocal(ipam) => host_local::release(&ipam.data_dir, &config.name, &sandbox.id, addresses),
            Allocation::Delegated(delegate) => {
                delegate.plugin().del(&sandbox.id, Some(&sandbox.netns), &sandbox.args, config)
            }
        }
    }

    /// Whether the attachment still has `addresses`, which it was given.
    pub(crate) fn check(
        &self,
        sandbox: &Sandbox,
        config: &NetworkConfig,
        addresses: &[IpAddr],
    ) -> Result<(), CniError> {
        match self {
            Allocation::None => Ok(()),
            Allocation::HostLocal(ipam) => host_local::check_held(&ipam.data_dir, &config.name, &sandbox.id, addresses),
            Allocation::Delegated(delegate) => delegate.plugin().check(sandbox, config),
        }
    }

    /// Whether [`Allocation::add`] would work now.
    pub(crate) fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        match self {
            Allocation::None => Ok(()),
            Allocation::HostLocal(ipam) => host_local::status(ipam, &config.name),
            Allocation::Delegated(delegate) => delegate.plugin().status(config),
        }
    }
}

impl Keeper {
    /// What `ipam` of `config` asks for.
    pub(crate) fn parse(config: &NetworkConfig) -> Result<Self, CniError> {
        Ok(match ipam_type(config)? {
            None => Keeper::None,
            Some("host-local") => {
                let dir = config.field("ipam").field("dataDir")?;
                Keeper::Ledger(dir.string()?.map_or_else(|| host_local::DEFAULT_DATA_DIR.into(), PathBuf::from))
            }
            Some(other) => Keeper::Delegated(Delegate::find("ipam.type", other, Role::Addresses)?),
        })
    }

    /// The addresses on record for an attachment, and of those `listed` in its result the ones that nobody else holds.
    pub(crate) fn addresses_left_by(
        &self,
        network: &str,
        id: &AttachmentId,
        listed: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, CniError> {
        match self {
            Keeper::Ledger(dir) => host_local::addresses_left_by(dir, network, id, &listed),
            Keeper::None | Keeper::Delegated(_) => Ok(listed),
        }
    }

    /// What has to happen while the interface is still there: another plugin may want to say goodbye over it (DHCP).
    pub(crate) fn part(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        match self {
            Keeper::Delegated(delegate) => delegate.plugin().del(id, netns, args, config),
            Keeper::None | Keeper::Ledger(_) => Ok(()),
        }
    }

    /// Releases the addresses on record, once they lead nowhere.
    pub(crate) fn release(&self, network: &str, id: &AttachmentId) -> Result<(), CniError> {
        match self {
            Keeper::Ledger(dir) => host_local::del(dir, network, id),
            Keeper::None | Keeper::Delegated(_) => Ok(()),
        }
    }

    /// Releases what anybody but `valid` holds.
    pub(crate) fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        match self {
            Keeper::None => Ok(()),
            Keeper::Ledger(dir) => host_local::gc(dir, &config.name, valid),
            Keeper::Delegated(delegate) => delegate.plugin().gc(config, valid),
        }
    }
}

/// `ipam.type`; none if there is no address management at all.
fn ipam_type(config: &NetworkConfig) -> Result<Option<&str>, CniError> {
    let field = config.field("ipam");
    match field.field("type")?.string()? {
        None if field.object()?.is_none_or(serde_json::Map::is_empty) => Ok(None),
        None => Err(field.field("type")?.wanted("the name of an IPAM plugin, such as host-local")),
        named => Ok(named),
    }
}
