//! Settings of the WireGuard backend.

use super::{ConfigError, MTU, field, number, port};
use crate::json::Object;
use kernel::wireguard::SecretKey;

/// Settings of the WireGuard backend; the defaults are flannel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuard {
    /// UDP port of the tunnel for IPv4 pods, or of the only one
    pub port: u16,
    /// UDP port of the tunnel for IPv6 pods
    pub port_v6: u16,
    /// MTU of the underlay in bytes, in place of the interface's
    pub mtu: Option<u32>,
    /// a secret of the whole cluster, besides the nodes' own keys
    pub preshared_key: Option<SecretKey>,
    /// seconds after which silence is broken; 0: never
    pub keepalive: u16,
    /// tunnels and their outer family
    pub mode: Mode,
}

/// Which tunnels there are between two nodes, and over which family of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// one for each family of pods, over the same family
    Separate,
    /// one for all pods, over the family by which the peer is likelier to be reached
    Auto,
    /// one for all pods, over IPv4
    Ipv4,
    /// one for all pods, over IPv6
    Ipv6,
}

impl WireGuard {
    pub(super) fn parse(options: &Object) -> Result<Self, ConfigError> {
        let mtu = number(options, "MTU", 0..=*MTU.end())?.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(ConfigError(format!("MTU: {mtu} is out of bounds, {} to {}", MTU.start(), MTU.end())));
        }
        let keepalive = number(options, "PersistentKeepaliveInterval", 0..=65_535)?;
        let preshared_key = field::<String>(options, "PSK")?.filter(|text| !text.is_empty());
        // The text is not repeated: it may be a real key with a slip in it.
        let preshared_key = preshared_key.map(|text| text.parse()).transpose();
        let mode = match field::<String>(options, "Mode")?.as_deref() {
            None | Some("" | "separate") => Mode::Separate,
            Some("auto") => Mode::Auto,
            Some("ipv4") => Mode::Ipv4,
            Some("ipv6") => Mode::Ipv6,
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                return Err(ConfigError(format!("Mode: {other:?} is none of separate, auto, ipv4, ipv6")));
            }
        };
        let config = Self {
            port: port(options, "ListenPort")?.unwrap_or(51_820),
            port_v6: port(options, "ListenPortV6")?.unwrap_or(51_821),
            mtu: mtu.and_then(|mtu| u32::try_from(mtu).ok()),
            preshared_key: preshared_key.map_err(|error| ConfigError(format!("PSK: {error}")))?,
            keepalive: keepalive.and_then(|seconds| u16::try_from(seconds).ok()).unwrap_or(0),
            mode,
        };
        if config.mode == Mode::Separate && config.port == config.port_v6 {
            return Err(ConfigError(format!("ListenPort and ListenPortV6 are both {}", config.port)));
        }
        Ok(config)
    }
}
