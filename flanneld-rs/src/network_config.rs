//! The cluster's network configuration: flannel's `net-conf.json`, parsed into values that are ready for use.

mod change;
mod wireguard;

use crate::checksum::TxChecksum;
use crate::extension::{CommandLine, Commands};
use crate::family::{Family, PerFamily};
use crate::json::Object;
use crate::lease::{self, Subnets};
use ipam::subnet_pool::SubnetPool;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use wireguard::{Mode, WireGuard};

/// Longest configuration that is read.
pub const MAX_BYTES: usize = 64 * 1024;
/// Smallest MTU of a link that carries IPv4 (RFC 791), and the largest that an IP packet can fill.
const MTU: std::ops::RangeInclusive<u64> = 68..=65_535;

/// flannel's port for packets in UDP.
const UDP_PORT: u16 = 8285;
/// What can be chosen.
const BUILT: &str = "vxlan, host-gw, wireguard, ipip, udp, alloc or extension";

/// A configuration that parsed: every value in it is usable as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// where the nodes' subnets come from, for each family in use (at least one)
    pub pools: PerFamily<SubnetPool>,
    /// how packets travel between nodes
    pub backend: Backend,
    /// destinations outside the pod network that pods reach under their own addresses; of nobody's but this daemon's
    pub not_masqueraded: BTreeSet<IpNetwork>,
}

/// The backends that are built, with their settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN tunnels
    Vxlan(Vxlan),
    /// plain routes through the nodes, which share a network segment
    HostGw,
    /// IPv4 tunnels
    Ipip {
        /// plain routes to the peers of the own network segment
        direct_routing: bool,
    },
    /// packets in UDP, through the daemon
    Udp {
        /// on which all nodes listen
        port: u16,
    },
    /// leases only
    Alloc,
    /// commands of the administrator's
    Extension(Arc<Commands>),
    /// encrypted tunnels
    WireGuard(WireGuard),
}

/// Settings of the VXLAN backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits
    pub vni: u32,
    /// outer UDP port; none: the kernel's own (8472)
    pub port: Option<u16>,
    /// MTU of the underlay in bytes, in place of the interface's
    pub mtu: Option<u32>,
    /// carry the group based policy extension
    pub gbp: bool,
    /// learn addresses from received packets
    pub learning: bool,
    /// plain routes to the peers of the own network segment
    pub direct_routing: bool,
    /// who computes the checksums of pods' packets (a key of our own, which flannel ignores)
    pub tx_checksum: TxChecksum,
}

impl Default for Vxlan {
    /// What flannel takes when the configuration says nothing.
    fn default() -> Self {
        Self {
            vni: 1,
            port: None,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            tx_checksum: TxChecksum::Auto,
        }
    }
}

/// What is wrong with a configuration, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "network configuration: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The names of a family's fields.
struct Fields {
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
}

impl Fields {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { network: "Network", length: "SubnetLen", min: "SubnetMin", max: "SubnetMax" },
            Family::V6 => {
                Self { network: "IPv6Network", length: "IPv6SubnetLen", min: "IPv6SubnetMin", max: "IPv6SubnetMax" }
            }
        }
    }
}

impl NetworkConfig {
    /// Parses JSON text.
    ///
    /// # Errors
    /// One line that names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_BYTES {
            return Err(ConfigError(format!("it has {} bytes, more than {MAX_BYTES}", text.len())));
        }
        let object: Object = serde_json::from_str(text).map_err(|error| ConfigError(format!("{error}")))?;
        let mut pools = PerFamily::default();
        for (family, enable, default) in [(Family::V4, "EnableIPv4", true), (Family::V6, "EnableIPv6", false)] {
            if field(&object, enable)?.unwrap_or(default) {
                pools.set(family, pool(&object, family)?);
            }
        }
        if pools.is_empty() {
            return Err(ConfigError("EnableIPv4 and EnableIPv6 are both false: one must be true".into()));
        }
        let backend = Backend::parse(&object)?;
        if matches!(backend, Backend::Ipip { .. }) && pools.get(Family::V6).is_some() {
            return Err(ConfigError("EnableIPv6: backend ipip carries IPv4 only; use vxlan, host-gw or udp".into()));
        }
        Ok(Self { pools, backend, not_masqueraded: not_masqueraded(&object)? })
    }

    /// The pod network of the whole cluster, by family.
    pub fn networks(&self) -> PerFamily<IpNetwork> {
        self.pools.map(|_, pool| pool.network())
    }

    /// A node may hold these subnets: one of each pool.
    pub fn allows(&self, subnets: &Subnets) -> bool {
        let fits = |family, pool: &SubnetPool| subnets.get(family).is_some_and(|subnet| pool.is_compatible(subnet));
        subnets.same_families(&self.pools) && self.pools.iter().all(|(family, pool)| fits(family, pool))
    }

    /// The families in use.
    pub fn families(&self) -> Vec<Family> {
        self.pools.families().collect()
    }
}

fn pool(object: &Object, family: Family) -> Result<SubnetPool, ConfigError> {
    let fields = Fields::of(family);
    let network: IpNetwork = required_network(object, family, fields.network)?;
    let length = number(object, fields.length, 0..=u64::from(family.bits()))?.filter(|length| *length > 0);
    let bound = |name| -> Result<Option<IpAddr>, ConfigError> {
        let Some(text) = field::<String>(object, name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        match text.parse() {
            Ok(address) if Family::of(address) == family => Ok(Some(address)),
            _ => Err(ConfigError(format!("{name}: {text:?} is no {family} address"))),
        }
    };
    let length = length.and_then(|length| u8::try_from(length).ok());
    let wrong = |why: String| ConfigError(format!("{}: {why}", fields.network));
    let pool = SubnetPool::new(network, length, bound(fields.min)?, bound(fields.max)?)
        .map_err(|error| wrong(error.to_string()))?;
    // Leases that the other nodes would refuse to read are of no use.
    if let Some(subnet) = pool.candidates().next() {
        lease::parse_key(&lease::key(&[(family, subnet)].into_iter().collect())).map_err(|error| {
            wrong(format!("{network} cannot be leased in subnets of /{}: {error}", subnet.prefix()))
        })?;
    }
    Ok(pool)
}

fn not_masqueraded(object: &Object) -> Result<BTreeSet<IpNetwork>, ConfigError> {
    const NAME: &str = "NonMasqueradeCIDRs";
    let network = |text: &String| {
        text.parse().map_err(|_| {
            let text: String = text.chars().take(50).collect();
            ConfigError(format!("{NAME}: {text:?} is no network, such as 192.0.2.0/24"))
        })
    };
    field::<Vec<String>>(object, NAME)?.unwrap_or_default().iter().map(network).collect()
}

fn required_network(object: &Object, family: Family, name: &str) -> Result<IpNetwork, ConfigError> {
    let text: String = field(object, name)?.ok_or_else(|| {
        ConfigError(format!("{name} is missing: the {family} pod network, such as {}", example(family)))
    })?;
    match text.parse::<IpNetwork>() {
        // Rust's parser takes a bare address for a network of one.
        Ok(network) if text.contains('/') && Family::of(network.ip()) == family => Ok(network),
        _ => Err(ConfigError(format!("{name}: {text:?} is no {family} network, such as {}", example(family)))),
    }
}

fn example(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/48",
    }
}

impl Backend {
    fn parse(config: &Object) -> Result<Self, ConfigError> {
        // Anything but an object is an error here, as it is in flannel.
        let options: Object = field(config, "Backend")?.unwrap_or_default();
        // flannel's documentation says vxlan is the default; its code says udp.
        let kind = field::<String>(&options, "Type")?.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "udp".into());
        match kind.as_str() {
            "vxlan" => Vxlan::parse(&options).map(Self::Vxlan),
            "host-gw" => Ok(Self::HostGw),
            "ipip" => Ok(Self::Ipip { direct_routing: field(&options, "DirectRouting")?.unwrap_or(false) }),
            "udp" => Ok(Self::Udp { port: port(&options, "Port")?.unwrap_or(UDP_PORT) }),
            "alloc" => Ok(Self::Alloc),
            "extension" => extension(&options).map(|commands| Self::Extension(Arc::new(commands))),
            "wireguard" => WireGuard::parse(&options).map(Self::WireGuard),
            // What flannel has, or had, beside them.
            "ipsec" | "aws-vpc" | "gce" | "ali-vpc" | "tencent-vpc" => Err(ConfigError(format!(
                "Backend.Type: {kind} is not supported here; use {BUILT}, or alloc and let the cloud route the leased subnets"
            ))),
            _ => Err(ConfigError(format!("Backend.Type: {kind:?} is no backend; use {BUILT}"))),
        }
    }
}

impl Vxlan {
    fn parse(options: &Object) -> Result<Self, ConfigError> {
        let default = Self::default();
        let flag = |name| field(options, name).map(|flag| flag.unwrap_or(false));
        // A VXLAN header has 24 bits for the identifier (RFC 7348 section 5); 0 is one of them.
        let vni = number(options, "VNI", 0..=0xff_ffff)?.and_then(|vni| u32::try_from(vni).ok());
        let mtu = number(options, "MTU", 0..=*MTU.end())?.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(ConfigError(format!("MTU: {mtu} is out of bounds, {} to {}", MTU.start(), MTU.end())));
        }
        Ok(Self {
            vni: vni.unwrap_or(default.vni),
            port: port(options, "Port")?,
            mtu: mtu.and_then(|mtu| u32::try_from(mtu).ok()),
            gbp: flag("GBP")?,
            learning: flag("Learning")?,
            direct_routing: flag("DirectRouting")?,
            tx_checksum: tx_checksum(options)?,
        })
    }
}

fn tx_checksum(options: &Object) -> Result<TxChecksum, ConfigError> {
    let Some(text) = field::<String>(options, "txChecksum")?.filter(|text| !text.is_empty()) else {
        return Ok(TxChecksum::Auto);
    };
    text.parse().map_err(|error| {
        let text: String = text.chars().take(40).collect();
        ConfigError(format!("txChecksum: {text:?} is {error}"))
    })
}

fn extension(options: &Object) -> Result<Commands, ConfigError> {
    let command = |name| -> Result<Option<CommandLine>, ConfigError> {
        let text: String = field(options, name)?.unwrap_or_default();
        CommandLine::parse(&text).map_err(|error| ConfigError(format!("{name}: {error}")))
    };
    Ok(Commands {
        pre_startup: command("PreStartupCommand")?,
        post_startup: command("PostStartupCommand")?,
        subnet_add: command("SubnetAddCommand")?,
        subnet_remove: command("SubnetRemoveCommand")?,
        shutdown: command("ShutdownCommand")?,
    })
}

/// A port number; 0 is as good as none.
fn port(options: &Object, name: &str) -> Result<Option<u16>, ConfigError> {
    let port = number(options, name, 0..=65_535)?.and_then(|port| u16::try_from(port).ok());
    Ok(port.filter(|port| *port != 0))
}

fn field<'a, T: Deserialize<'a>>(object: &'a Object, name: &str) -> Result<Option<T>, ConfigError> {
    object.read(name).map_err(|error| ConfigError(format!("{name}: {error}")))
}

fn number(object: &Object, name: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
    match object.get(name).map(|value| value.get()) {
        None | Some("null") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => {
                let text: String = text.chars().take(40).collect();
                Err(ConfigError(format!("{name}: {text} is no number from {} to {}", bounds.start(), bounds.end())))
            }
        },
    }
}
