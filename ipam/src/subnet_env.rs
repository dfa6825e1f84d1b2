//! The file in which the daemon tells this node's plugins what they may hand out: `KEY=VALUE` lines as flannel writes
//! them.

use ipnetwork::IpNetwork;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where plugins look unless `subnetFile` says otherwise.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// What the daemon leased for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// the cluster's networks, IPv4 first
    pub networks: Vec<IpNetwork>,
    /// this node's subnets, at most one per family, IPv4 first, each with its gateway address (first usable) as address
    pub subnets: Vec<IpNetwork>,
    /// MTU for pods, in bytes
    pub mtu: u32,
    /// whether the daemon masquerades what leaves the cluster
    pub ip_masq: bool,
}

/// Why a subnet file is of no use, with the path and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubnetEnvError {
    /// there is none: the daemon is not ready
    Missing(PathBuf),
    /// it cannot be read or written; text with errno
    Io(String),
    /// its content is wrong; text with the line
    Invalid(String),
}

impl fmt::Display for SubnetEnvError {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl std::error::Error for SubnetEnvError {}

impl SubnetEnv {
    /// The cluster's networks.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.networks.iter().copied()
    }

    /// This node's subnets, with the gateway as address.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.subnets.iter().copied()
    }

    /// Reads the text of a subnet file.
    pub fn parse(_text: &str) -> Result<Self, SubnetEnvError> {
        todo!()
    }

    /// The text of the file, to the byte as flannel writes it.
    pub fn render(&self) -> String {
        todo!()
    }

    /// Reads the file at `path`.
    pub fn read(_path: &Path) -> Result<Self, SubnetEnvError> {
        todo!()
    }

    /// Replaces the file at `path` atomically (0644), creating parent directories.
    pub fn write(&self, _path: &Path) -> Result<(), SubnetEnvError> {
        todo!()
    }
}
