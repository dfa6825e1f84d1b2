//! Plugin configurations: a value that parses is ready for use.

use crate::allocation::{Allocation, Keeper};
use crate::bandwidth::limits::Limits;
use crate::host_ports::{self, HostPortConfig, HostPorts};
use crate::tuning::settings;
use cni_spec::{Arguments, CniError, Code, Dns, NetworkConfig, Route};
use ipam::host_local::HostLocal;
use ipam::subnet_env::{DEFAULT_PATH, SubnetEnv};
use ipnetwork::IpNetwork;
use kernel::Mac;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest interface name (IFNAMSIZ less the terminating zero, linux/if.h).
const LONGEST_NAME: usize = 15;

/// Who configures the bridge: we natively, or a conflist written for the reference `bridge` plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `type: flannel-rs`: everything follows from the daemon's subnet file
    FlannelRs,
    /// `type: bridge`: the reference plugin's keys and defaults
    Bridge,
    /// `type: ptp`: the same, without a bridge
    PointToPoint,
}

/// What the bridge is to the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gateway {
    /// a switch only
    None,
    /// it carries the gateway address
    Address,
    /// and pods have their default route over it
    DefaultRoute,
}

/// What to do about an address of the same family that the bridge has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StaleAddress {
    /// fail, as the reference plugin does without `forceAddress`
    Refuse,
    /// replace it
    Replace,
    /// replace it on a bridge that we made and that has no ports; pods that are still attached go on beside the new ones
    ReplaceWhenIdle,
}

/// A configuration that ADD and CHECK can work with.
pub(crate) struct PluginConfig {
    /// name of the bridge; none: the pod is connected to the node alone
    pub(crate) bridge: Option<String>,
    /// role of the bridge
    pub(crate) gateway: Gateway,
    /// policy for other addresses on the bridge
    pub(crate) stale: StaleAddress,
    /// MTU in bytes of bridge and veth; none: the kernel's default
    pub(crate) mtu: Option<u32>,
    /// frames may leave through the port they came in by
    pub(crate) hairpin: bool,
    /// MAC of the pod's interface, if asked for
    pub(crate) mac: Option<Mac>,
    /// how fast the pod may send and receive
    pub(crate) limits: Limits,
    /// name resolution for the result; without any, that of the address management
    pub(crate) dns: Dns,
    /// what the pod sends out of its subnet, and out of these networks, gets the node's address; none: nothing does
    pub(crate) masquerade: Option<Vec<IpNetwork>>,
    /// kernel parameters of the sandbox
    pub(crate) sysctls: BTreeMap<String, String>,
    /// the bridge takes packets for any hardware address
    pub(crate) promiscuous: bool,
    /// pods on the bridge do not reach each other
    pub(crate) isolated: bool,
    /// the pod sends from its own hardware address only
    pub(crate) guarded: bool,
    /// the pod's interface stays down
    pub(crate) down: bool,
    /// address management
    pub(crate) ipam: Allocation,
    /// ports of the host; none: left to a chained plugin
    pub(crate) ports: Option<HostPortConfig>,
}

impl PluginConfig {
    /// Parses everything that an ADD needs.
    pub(crate) fn parse(dialect: Dialect, config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        match dialect {
            Dialect::FlannelRs => Self::flannel_rs(config, args),
            Dialect::Bridge => Self::bridge(config, args),
            Dialect::PointToPoint => Self::point_to_point(config, args),
        }
    }

    fn flannel_rs(config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        let path = config.field("subnetFile").string()?.map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from);
        let env = subnet_env(&path)?;
        let gateway = match config.field("isDefaultGateway").bool()? {
            Some(false) => Gateway::Address,
            _ => Gateway::DefaultRoute,
        };
        // With a default route over the bridge the cluster's own networks need no routes of their own.
        let routes = match gateway {
            Gateway::DefaultRoute => Vec::new(),
            _ => env.networks().map(|network| Route::new(network, None)).collect(),
        };
        let ipam = HostLocal::for_subnets(config, args, env.subnets(), routes)?;
        Ok(PluginConfig {
            bridge: bridge_name(Dialect::FlannelRs, config)?,
            gateway,
            // Pods of other nodes see a pod's own address.
            masquerade: config.field("ipMasq").bool()?.unwrap_or(false).then(|| env.networks().collect()),
            sysctls: settings::sysctls(config)?,
            promiscuous: false,
            isolated: false,
            guarded: false,
            down: false,
            stale: StaleAddress::ReplaceWhenIdle,
            mtu: mtu(config)?.or(Some(env.mtu)),
            hairpin: config.field("hairpinMode").bool()?.unwrap_or(true),
            mac: requested_mac(config, args)?,
            limits: Limits::parse(config)?,
            dns: Dns::read(&config.field("dns"))?,
            ipam: Allocation::HostLocal(ipam),
            ports: Some(HostPortConfig::parse(config)?),
        })
    }

    fn bridge(config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        // Better no pod than one that silently lacks what its network promises.
        if config.field("vlan").number::<u16>()?.unwrap_or(0) != 0 || config.field("vlanTrunk").value().is_some() {
            // `preserveDefaultVlan` says something about these two only.
            let text = "vlan and vlanTrunk, which take a bridge with VLAN filtering, are not built yet: leave them out of \
                the network configuration, or keep the reference bridge plugin";
            return Err(CniError::new(Code::UnsupportedField, text));
        }
        masquerade_backend(config)?;
        let is = |key: &str| Ok::<_, CniError>(config.field(key).bool()?.unwrap_or(false));
        let gateway = match (is("isGateway")?, is("isDefaultGateway")?) {
            (_, true) => Gateway::DefaultRoute,
            (true, false) => Gateway::Address,
            (false, false) => Gateway::None,
        };
        let (promiscuous, down) = (is("promiscMode")?, is("disableContainerInterface")?);
        if promiscuous && config.field("hairpinMode").bool()? == Some(true) {
            return Err(config.field("promiscMode").invalid("cannot be set together with hairpinMode"));
        }
        let ipam = Allocation::parse(config, args)?;
        if down && !matches!(ipam, Allocation::None) {
            let field = config.field("disableContainerInterface");
            return Err(field.invalid("an interface that stays down cannot have addresses: leave out ipam"));
        }
        Ok(PluginConfig {
            bridge: bridge_name(Dialect::Bridge, config)?,
            gateway,
            stale: if is("forceAddress")? { StaleAddress::Replace } else { StaleAddress::Refuse },
            mtu: mtu(config)?,
            // Where the bridge itself takes everything, a packet that is sent back as well would arrive twice.
            hairpin: config.field("hairpinMode").bool()?.unwrap_or(!promiscuous),
            mac: requested_mac(config, args)?,
            // In this dialect limits are the business of a plugin of their own, later in the chain.
            limits: Limits::default(),
            dns: Dns::read(&config.field("dns"))?,
            masquerade: is("ipMasq")?.then(Vec::new),
            // Settings of the sandbox are the business of tuning, as limits are of bandwidth.
            sysctls: BTreeMap::new(),
            promiscuous,
            isolated: is("portIsolation")?,
            guarded: is("macspoofchk")?,
            down,
            ipam,
            ports: None,
        })
    }

    fn point_to_point(config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        masquerade_backend(config)?;
        let ipam = Allocation::parse(config, args)?;
        if matches!(ipam, Allocation::None) {
            return Err(config.field("ipam").invalid("missing: a point-to-point link is nothing without an address"));
        }
        Ok(PluginConfig {
            bridge: None,
            gateway: Gateway::Address,
            stale: StaleAddress::Refuse,
            mtu: mtu(config)?,
            hairpin: false,
            mac: requested_mac(config, args)?,
            limits: Limits::default(),
            dns: Dns::read(&config.field("dns"))?,
            masquerade: config.field("ipMasq").bool()?.unwrap_or(false).then(Vec::new),
            sysctls: BTreeMap::new(),
            promiscuous: false,
            isolated: false,
            guarded: false,
            down: false,
            ipam,
            ports: None,
        })
    }
}

/// `ipMasqBackend`: the reference plugins have iptables and nftables to choose from, and we have one that serves both.
fn masquerade_backend(config: &NetworkConfig) -> Result<(), CniError> {
    let field = config.field("ipMasqBackend");
    match field.string()? {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(_) => Err(field.wanted("iptables or nftables (we use nftables for both)")),
    }
}

/// Reads the daemon's subnet file; a node that is not ready says so with the runtime's own "not available".
pub(crate) fn subnet_env(path: &Path) -> Result<SubnetEnv, CniError> {
    SubnetEnv::read(path).map_err(|error| CniError::new(Code::TryAgain, error.to_string()))
}

/// Where the attachments of `config` have their addresses recorded: all that DEL and GC need, whatever else the
/// configuration has become in the meantime.
pub(crate) fn keeper(dialect: Dialect, config: &NetworkConfig) -> Result<Keeper, CniError> {
    if dialect != Dialect::FlannelRs {
        return Keeper::parse(config);
    }
    let dir = config.field("dataDir");
    Ok(Keeper::Ledger(dir.string()?.map_or_else(|| ipam::host_local::DEFAULT_DATA_DIR.into(), PathBuf::from)))
}

/// Where host ports of the attachments are recorded: again all that DEL and GC need. None: a chained plugin sees to them.
pub(crate) fn host_ports(dialect: Dialect, config: &NetworkConfig) -> Result<Option<HostPorts>, CniError> {
    match dialect {
        Dialect::FlannelRs => host_ports::directory(config).map(|directory| Some(HostPorts::recorded_in(directory))),
        Dialect::Bridge | Dialect::PointToPoint => Ok(None),
    }
}

/// The bridge of `config`, also where the rest of it is unusable.
pub(crate) fn bridge_name(dialect: Dialect, config: &NetworkConfig) -> Result<Option<String>, CniError> {
    let default = match dialect {
        Dialect::FlannelRs => "cbr0",
        Dialect::Bridge => "cni0",
        Dialect::PointToPoint => return Ok(None),
    };
    let field = config.field("bridge");
    let name = field.string()?.unwrap_or(default);
    let legal = name.len() <= LONGEST_NAME
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
    if legal { Ok(Some(name.into())) } else { Err(field.wanted("an interface name of at most 15 bytes")) }
}

/// A configured MTU; 0 means none, as upstream.
fn mtu(config: &NetworkConfig) -> Result<Option<u32>, CniError> {
    // The kernel takes MTUs up to 65535 (ETH_MAX_MTU).
    Ok(config.field("mtu").number::<u16>()?.filter(|mtu| *mtu != 0).map(u32::from))
}

/// A MAC from `runtimeConfig.mac` (capability `mac`) or `CNI_ARGS MAC=`.
fn requested_mac(config: &NetworkConfig, args: &Arguments) -> Result<Option<Mac>, CniError> {
    if let Some(mac) = config.field("runtimeConfig").field("mac")?.parsed::<Mac>()? {
        return Ok(Some(mac));
    }
    let Some(mac) = args.get("MAC").filter(|mac| !mac.is_empty()) else { return Ok(None) };
    let invalid = |error| CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS MAC: {error}"));
    mac.parse().map(Some).map_err(invalid)
}
