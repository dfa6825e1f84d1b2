//! What the runtime asks for.

use crate::{NetworkConfig, SpecVersion};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The name of an attachment: spec section "CNI_CONTAINERID", "CNI_IFNAME".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// container id
    pub container_id: String,
    /// interface name inside the sandbox
    pub ifname: String,
}

/// `CNI_ARGS`, parsed: key=value pairs separated by semicolons.
pub type Arguments = BTreeMap<String, String>;

/// A sandbox that an attachment is made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// who
    pub id: AttachmentId,
    /// path of the network namespace
    pub netns: PathBuf,
    /// `CNI_ARGS`
    pub args: Arguments,
    /// `CNI_PATH`
    pub path: Vec<PathBuf>,
}

/// A request that is ready to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// attach
    Add(Sandbox, NetworkConfig),
    /// detach; the namespace may be gone or unknown
    Del {
        /// who
        id: AttachmentId,
        /// path of the namespace, if the runtime still has it
        netns: Option<PathBuf>,
        /// `CNI_ARGS`
        args: Arguments,
        /// the network
        config: NetworkConfig,
    },
    /// compare with `prevResult`, which is present
    Check(Sandbox, NetworkConfig),
    /// release all attachments but these
    Gc(NetworkConfig, Vec<AttachmentId>),
    /// can ADD work?
    Status(NetworkConfig),
    /// which versions?
    Version(SpecVersion),
}
