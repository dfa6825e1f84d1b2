//! The address management plugin `host-local`: as an executable, and in process.

use cni_spec::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, Route, Sandbox};
use ipnetwork::IpNetwork;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where reservations are kept unless `dataDir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// A configuration that is ready to allocate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocal {
    /// directory of the networks' directories
    pub data_dir: PathBuf,
}

impl HostLocal {
    /// Reads the `ipam` object of `config`, and the addresses asked for in `args`, `args.cni.ips` or `runtimeConfig.ips`.
    pub fn parse(_config: &NetworkConfig, _args: &Arguments) -> Result<Self, CniError> {
        todo!()
    }

    /// One address out of each of `subnets`; `dataDir`, `runtimeConfig` and requested addresses as in [`Self::parse`].
    pub fn for_subnets(
        _config: &NetworkConfig,
        _args: &Arguments,
        _subnets: impl IntoIterator<Item = IpNetwork>,
        _routes: Vec<Route>,
    ) -> Result<Self, CniError> {
        todo!()
    }
}

/// Reserves one address of each range set for `id`: all or none.
pub fn add(_ipam: &HostLocal, _network: &str, _id: &AttachmentId) -> Result<AddResult, CniError> {
    todo!()
}

/// Releases whatever `id` holds; nothing held is success.
pub fn del(_data_dir: &Path, _network: &str, _id: &AttachmentId) -> Result<(), CniError> {
    todo!()
}

/// Checks that `id` holds an address of each range set.
pub fn check(_ipam: &HostLocal, _network: &str, _id: &AttachmentId) -> Result<(), CniError> {
    todo!()
}

/// The addresses that `id` holds.
pub fn addresses_of(_data_dir: &Path, _network: &str, _id: &AttachmentId) -> Result<Vec<IpAddr>, CniError> {
    todo!()
}

/// The addresses held by anybody but `valid`.
pub fn addresses_of_others(
    _data_dir: &Path,
    _network: &str,
    _valid: &[AttachmentId],
) -> Result<Vec<IpAddr>, CniError> {
    todo!()
}

/// Releases what anybody but `valid` holds.
pub fn gc(_data_dir: &Path, _network: &str, _valid: &[AttachmentId]) -> Result<(), CniError> {
    todo!()
}

/// Whether [`add`] would find an address in every range set; code 50 with the reason if not.
pub fn status(_ipam: &HostLocal, _network: &str) -> Result<(), CniError> {
    todo!()
}

/// The plugin as an executable serves it.
#[derive(Clone, Copy, Debug)]
pub struct Plugin;

impl cni_spec::Plugin for Plugin {
    fn add(&self, _sandbox: &Sandbox, _config: &NetworkConfig) -> Result<AddResult, CniError> {
        todo!()
    }

    fn del(&self, _: &AttachmentId, _: Option<&Path>, _: &Arguments, _: &NetworkConfig) -> Result<(), CniError> {
        todo!()
    }

    fn check(&self, _sandbox: &Sandbox, _config: &NetworkConfig) -> Result<(), CniError> {
        todo!()
    }

    fn gc(&self, _config: &NetworkConfig, _valid: &[AttachmentId]) -> Result<(), CniError> {
        todo!()
    }

    fn status(&self, _config: &NetworkConfig) -> Result<(), CniError> {
        todo!()
    }
}
