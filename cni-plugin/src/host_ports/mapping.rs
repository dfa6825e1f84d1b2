//! Which ports are asked for: the configuration, and what follows from it and the pod's addresses.

use cni_spec::{CniError, Code, Field, NetworkConfig};
use ipnetwork::IpNetwork;
use kernel::nft::Protocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// The host ports of an attachment as its configuration asks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortConfig {
    /// `runtimeConfig.portMappings`
    pub mappings: Vec<Mapping>,
    /// from `snat` and `masqAll`
    pub masquerade: Masquerade,
    /// `hostPortsDir`: where ports that are in use are recorded
    pub directory: PathBuf,
}

/// One entry of `portMappings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// transport protocol
    pub protocol: Protocol,
    /// `hostIP`: the address of the host whose port it is; none: every address. An unspecified one (`0.0.0.0`, `::`) is
    /// every address of its family.
    pub host: Option<IpAddr>,
    /// `hostPort`
    pub host_port: u16,
    /// `containerPort`
    pub pod_port: u16,
}

/// Whose source address is replaced by the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masquerade {
    /// nobody's: a pod cannot speak to itself over the host's port, nor to others of its subnet, nor can 127.0.0.1 (`snat`
    /// is false)
    Nobody,
    /// that of those whom the pod would not answer over the host: itself, its subnet, and 127.0.0.1
    Neighbours,
    /// everybody's (`masqAll`)
    Everybody,
}

/// A port of the host that leads to a port of a pod: one address family of a [`Mapping`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// transport protocol
    #[serde(with = "protocol")]
    pub protocol: Protocol,
    /// address of the host; an unspecified one is every address of its family
    pub host: IpAddr,
    /// port of the host
    pub host_port: u16,
    /// the pod's address, with the length of its subnet's prefix
    pub pod: IpNetwork,
    /// port of the pod
    pub pod_port: u16,
    /// whose source address is replaced
    pub masquerade: Masquerade,
}

impl HostPortConfig {
    /// Reads the keys of the reference `portmap` plugin.
    ///
    /// `backend`, `markMasqBit` and `externalSetMarkChain` say by which means the reference masquerades and are without
    /// consequence here: whatever they are, the flows that they concern are masqueraded.
    ///
    /// # Errors
    /// `InvalidConfig` naming the entry; `UnsupportedField` for `conditionsV4` and `conditionsV6`, which are arguments of
    /// the iptables program.
    pub fn parse(config: &NetworkConfig) -> Result<Self, CniError> {
        for key in ["conditionsV4", "conditionsV6"] {
            if !config.field(key).strings()?.is_empty() {
                return Err(CniError::new(
                    Code::UnsupportedField,
                    format!(
                        "{key}: arguments of the iptables program cannot be carried out here: use hostIP in the port \
                         mappings, or keep the reference portmap plugin"
                    ),
                ));
            }
        }
        let backend = config.field("backend");
        if backend.string()?.is_some_and(|name| !matches!(name, "iptables" | "nftables")) {
            return Err(backend.wanted("\"iptables\" or \"nftables\""));
        }
        let (mark, chain) = (config.field("markMasqBit"), config.field("externalSetMarkChain"));
        if mark.number::<u8>()?.is_some_and(|bit| bit > 31) {
            return Err(mark.wanted("a number from 0 to 31"));
        }
        if chain.string()?.is_some() && mark.value().is_some() {
            return Err(chain.invalid("cannot be given together with markMasqBit"));
        }
        let masquerade = match (config.field("snat").bool()?, config.field("masqAll").bool()?) {
            (Some(false), _) => Masquerade::Nobody,
            (_, Some(true)) => Masquerade::Everybody,
            _ => Masquerade::Neighbours,
        };
        let mappings = config.field("runtimeConfig").field("portMappings")?.items()?;
        let mappings = mappings.iter().map(Mapping::parse).collect::<Result<_, _>>()?;
        Ok(HostPortConfig { mappings, masquerade, directory: directory(config)? })
    }

    /// The forwards that make the mappings true for a pod with these addresses, of which the first of each family counts.
    /// A mapping whose `hostIP` is of a family that the pod does not have leads nowhere, as upstream.
    ///
    /// # Errors
    /// `InvalidConfig` if two mappings are for the same port of the same address and lead to different ports.
    pub fn forwards(&self, addresses: &[IpNetwork]) -> Result<Vec<Forward>, CniError> {
        let families = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let mut forwards: BTreeMap<(Protocol, u16, IpAddr), Forward> = BTreeMap::new();
        for mapping in &self.mappings {
            for any in families {
                let host: IpAddr = mapping.host.unwrap_or(any);
                let pod = addresses.iter().find(|address| address.is_ipv4() == any.is_ipv4());
                let Some(pod) = pod.filter(|_| host.is_ipv4() == any.is_ipv4()) else { continue };
                let forward = Forward {
                    protocol: mapping.protocol,
                    host,
                    host_port: mapping.host_port,
                    pod: *pod,
                    pod_port: mapping.pod_port,
                    masquerade: self.masquerade,
                };
                let ports = (forward.protocol, forward.host_port);
                let other = forwards
                    .range((ports.0, ports.1, Ipv4Addr::UNSPECIFIED.into())..)
                    .take_while(|((protocol, port, _), _)| (*protocol, *port) == ports)
                    .find(|(_, other)| other.overlaps(host) && other.pod_port != forward.pod_port);
                if let Some((_, other)) = other {
                    return Err(CniError::new(
                        Code::InvalidConfig,
                        format!("runtimeConfig.portMappings: {forward} and {other} contradict each other"),
                    ));
                }
                forwards.insert((ports.0, ports.1, host), forward);
            }
        }
        Ok(forwards.into_values().collect())
    }
}

/// The directory under which ports in use are recorded: all that DEL and GC need of the configuration.
pub(crate) fn directory(config: &NetworkConfig) -> Result<PathBuf, CniError> {
    Ok(PathBuf::from(config.field("hostPortsDir").string()?.unwrap_or(super::DEFAULT_DIRECTORY)))
}

impl Mapping {
    fn parse(entry: &Field<'_>) -> Result<Self, CniError> {
        let port = |key: &str| {
            let field = entry.field(key)?;
            match field.number::<u16>()? {
                Some(port) if port > 0 => Ok(port),
                _ => Err(field.wanted("a port, 1 to 65535")),
            }
        };
        let protocol = entry.field("protocol")?;
        let name = protocol.string()?.map(str::to_ascii_lowercase);
        Ok(Mapping {
            protocol: match name.as_deref() {
                Some(name) => protocol::parse(name).ok_or_else(|| protocol.wanted("tcp, udp or sctp"))?,
                None => Protocol::Tcp,
            },
            // Go reads ::ffff:192.0.2.1 as an IPv4 address.
            host: entry.field("hostIP")?.address()?.map(|address| address.to_canonical()),
            host_port: port("hostPort")?,
            pod_port: port("containerPort")?,
        })
    }
}

impl Forward {
    /// Whether a packet to the host's address `other` and the same port could be meant for this one, too.
    pub fn overlaps(&self, other: IpAddr) -> bool {
        self.host.is_ipv4() == other.is_ipv4()
            && (self.host == other || self.host.is_unspecified() || other.is_unspecified())
    }

    /// The network that shares the pod's wire.
    pub fn subnet(&self) -> IpNetwork {
        IpNetwork::new(self.pod.network(), self.pod.prefix()).unwrap_or(self.pod)
    }

    /// Whether 127.0.0.1 of the host is meant to lead to the pod as well.
    pub fn serves_loopback(&self) -> bool {
        let reaches = self.host == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || self.host.is_ipv4() && self.host.is_loopback();
        reaches && self.masquerade != Masquerade::Nobody
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = std::net::SocketAddr::new(self.host, self.host_port);
        let pod = std::net::SocketAddr::new(self.pod.ip(), self.pod_port);
        write!(f, "{} {host} -> {pod}", self.protocol)
    }
}

/// Protocols by name, in configurations and records.
mod protocol {
    use kernel::nft::Protocol;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn parse(name: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.to_string() == name)
    }

    pub(super) fn serialize<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(protocol)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        let name = String::deserialize(deserializer)?;
        parse(&name).ok_or_else(|| Error::custom(format_args!("{name:?} is no protocol with ports")))
    }
}

#[cfg(test)]
mod tests;
