//! What this process may do.

use crate::{Error, Result};
use nix::errno::Errno;

/// Number of CAP_NET_ADMIN (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Succeeds if the process has CAP_NET_ADMIN in its own user namespace, without which the kernel takes no change from it.
///
/// # Errors
/// EPERM.
pub fn may_configure_network() -> Result<()> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(|error| Error::io(format!("reading {path}"), &error))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default();
    if effective & (1 << CAP_NET_ADMIN) != 0 {
        Ok(())
    } else {
        Err(Error::new("configuring the network", Errno::EPERM))
    }
}
