//! What the runtime asks for.

use crate::config::MAX_CONFIG_SIZE;
use crate::environment::{Call, Verb};
use crate::{CniError, Code, NetworkConfig};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
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
    Version,
}

impl Request {
    /// Reads a request from the environment and standard input.
    ///
    /// VERSION reads no standard input, like the reference: a runtime that leaves the pipe open must not hang.
    ///
    /// # Errors
    /// `InvalidEnvironment` naming the variables; `Io`; those of [`NetworkConfig::parse`]; `IncompatibleVersion` for a
    /// verb that the configuration's version does not have; `InvalidConfig` for a CHECK without prevResult or a GC
    /// without its list of attachments.
    pub fn read(env: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Result<Self, CniError> {
        match Call::read(env)? {
            Call::Version => Ok(Request::Version),
            Call::Network(verb) => Self::complete(verb, read_config(stdin)?),
        }
    }

    /// Joins a verb with its configuration, as far as [`NetworkConfig::without_prev_result`] has read it.
    pub(crate) fn complete(verb: Verb, mut config: NetworkConfig) -> Result<Self, CniError> {
        let version = config.version;
        let defined = |verb: &str, since: &str, defined: bool| {
            let msg = format!("cniVersion {version} has no {verb}: it came with {since}");
            if defined { Ok(()) } else { Err(CniError::new(Code::IncompatibleVersion, msg)) }
        };
        match verb {
            Verb::Add(sandbox) => {
                config.prev_result = config.read_prev_result()?;
                Ok(Request::Add(sandbox, config))
            }
            Verb::Del { id, netns, args } => {
                // A DEL goes as far as it can: what ADD answered is a help and no condition (spec section 2, "DEL").
                config.prev_result = config.read_prev_result().unwrap_or_default();
                Ok(Request::Del { id, netns, args, config })
            }
            Verb::Check(sandbox) => {
                defined("CHECK", "0.4.0", version.has_check())?;
                config.prev_result = config.read_prev_result()?;
                if config.prev_result.is_none() {
                    return Err(config.field("prevResult").invalid("missing, but CHECK compares the kernel with it"));
                }
                Ok(Request::Check(sandbox, config))
            }
            Verb::Gc => {
                defined("GC", "1.1.0", version.has_gc())?;
                let valid = config.valid_attachments()?;
                Ok(Request::Gc(config, valid))
            }
            Verb::Status => {
                defined("STATUS", "1.1.0", version.has_status())?;
                Ok(Request::Status(config))
            }
        }
    }
}

/// The configuration on standard input, all but prevResult, which not every verb insists on.
pub(crate) fn read_config(stdin: impl Read) -> Result<NetworkConfig, CniError> {
    let mut json = Vec::new();
    // One byte more than allowed, so that too much is told from just enough.
    let limit = MAX_CONFIG_SIZE as u64 + 1;
    stdin.take(limit).read_to_end(&mut json).map_err(|error| {
        CniError::new(Code::Io, format!("reading the network configuration from standard input: {error}"))
    })?;
    NetworkConfig::without_prev_result(&json)
}
