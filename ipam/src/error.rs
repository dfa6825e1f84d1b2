//! What can go wrong with an allocation, and how the runtime reads it.

use cni_spec::{CniError, Code};
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Why an operation on addresses failed.
#[derive(Debug)]
pub enum IpamError {
    /// a network name, container id or interface name that cannot be recorded, in words
    Name(String),
    /// the file system refused
    Disk {
        /// what was tried, as in "creating"
        action: &'static str,
        /// on which file
        path: PathBuf,
        /// with which result
        source: io::Error,
    },
    /// the lock of the network was not free in time
    Busy {
        /// the lock file
        lock: PathBuf,
        /// how long we waited
        waited: Duration,
        /// process that holds it, if the kernel tells
        holder: Option<u32>,
    },
    /// every address of the range set is reserved
    Exhausted {
        /// the range set, as text
        ranges: String,
        /// where the reservations are
        directory: PathBuf,
        /// how many of them belong to attachments that are alive
        alive: usize,
        /// how many belong to attachments of which nothing is known
        unknown: usize,
        /// why not more is known, if there is a reason
        obstacle: Option<String>,
    },
    /// the attachment holds an address of the range set already
    Duplicate {
        /// the address
        address: IpAddr,
        /// the container
        container_id: String,
    },
    /// an address that was asked for cannot be given
    Refused {
        /// the address
        address: IpAddr,
        /// why, in words
        reason: String,
    },
    /// the attachment should hold an address and does not, in words
    NotHeld(String),
}

impl IpamError {
    fn code(&self) -> Code {
        match self {
            IpamError::Name(_) => Code::InvalidConfig,
            IpamError::Disk { .. } => Code::Io,
            IpamError::Busy { .. } => Code::TryAgain,
            IpamError::Exhausted { .. } | IpamError::Duplicate { .. } | IpamError::Refused { .. } => Code::Ipam,
            IpamError::NotHeld(_) => Code::CheckFailed,
        }
    }
}

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> Self {
        CniError::new(error.code(), error.to_string())
    }
}

impl fmt::Display for IpamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpamError::Name(text) | IpamError::NotHeld(text) => f.write_str(text),
            IpamError::Disk { action, path, source } => {
                write!(f, "{action} {}: ", path.display())?;
                match source.raw_os_error().map(Errno::from_raw) {
                    Some(errno) => write!(f, "{errno}{}", remedy(errno)),
                    None => write!(f, "{source}"),
                }
            }
            IpamError::Busy { lock, waited, holder } => {
                write!(f, "{} is locked", lock.display())?;
                if let Some(pid) = holder {
                    write!(f, " by process {pid}")?;
                }
                write!(f, ", still after {} s: try again, or see what that process hangs on", waited.as_secs())
            }
            IpamError::Exhausted { ranges, directory, alive, unknown, obstacle } => {
                write!(
                    f,
                    "no IP addresses available in range set: {ranges} ({alive} belong to pods that are alive, {unknown} to \
                     pods of which nothing is known",
                )?;
                if let Some(obstacle) = obstacle {
                    write!(f, " because of {obstacle}")?;
                }
                write!(
                    f,
                    "; if those are gone, delete their files in {} or let the runtime run GC)",
                    directory.display()
                )
            }
            // Both texts are upstream's: people search logs for them.
            IpamError::Duplicate { address, container_id } => {
                write!(f, "{address} has been allocated to {container_id}, duplicate allocation is not allowed")
            }
            IpamError::Refused { address, reason } => write!(f, "requested IP address {address} {reason}"),
        }
    }
}

impl std::error::Error for IpamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IpamError::Disk { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => " (free space or inodes on this file system)",
        Errno::EROFS => " (remount it writable, or set dataDir to a writable directory)",
        Errno::EACCES | Errno::EPERM => " (the plugin must run as root)",
        Errno::EXDEV => " (dataDir and the directories in it must be on one file system)",
        Errno::EEXIST | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP => " (something else is in the way: move it)",
        _ => "",
    }
}
