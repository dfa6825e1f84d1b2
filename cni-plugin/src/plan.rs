//! The plan of an attachment: a pure value that ADD carries out, CHECK compares with the kernel, and the result is
//! printed from. Here is the last place where anything can be invalid.

use crate::attachment;
use crate::attachments::Attached;
use crate::bandwidth::limits::Limits;
use crate::config::{Gateway, PluginConfig, StaleAddress};
use crate::host_ports::{Forward, Record};
use crate::tuning::settings;
use cni_spec::{AddResult, AttachmentId, CniError, Code, Dns, Interface, IpAssignment, Route, Sandbox};
use ipnetwork::IpNetwork;
use kernel::Mac;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Everything that one attachment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPlan {
    /// the bridge it is plugged into; none: the node itself
    pub(crate) bridge: Option<BridgePlan>,
    /// the pair of devices
    pub(crate) veth: VethPlan,
    /// the pod's addresses with their gateways
    pub(crate) ips: Vec<IpAssignment>,
    /// the pod's routes, each with a gateway unless it is on link
    pub(crate) routes: Vec<Route>,
    /// how fast it may send and receive
    pub(crate) limits: Limits,
    /// name resolution, which is for the runtime to set up
    pub(crate) dns: Dns,
    /// ports of the host that lead to it, as they are recorded
    pub(crate) ports: Record,
    /// what the pod sends out of these networks gets the node's address; none: nothing does
    pub(crate) masquerade: Option<Vec<IpNetwork>>,
    /// kernel parameters of the sandbox, the interface's name filled in
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// The bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BridgePlan {
    pub(crate) name: String,
    /// address for a bridge that has yet to be made
    pub(crate) mac: Mac,
    pub(crate) mtu: Option<u32>,
    /// gateway addresses that it must have
    pub(crate) addresses: Vec<IpNetwork>,
    pub(crate) stale: StaleAddress,
    /// it takes packets for any hardware address
    pub(crate) promiscuous: bool,
}

/// The veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VethPlan {
    /// name of the host end
    pub(crate) host: String,
    /// mark of the host end
    pub(crate) alias: String,
    /// name inside the sandbox
    pub(crate) pod: String,
    /// address of the pod's end
    pub(crate) mac: Mac,
    /// address of the host's end
    pub(crate) host_mac: Mac,
    pub(crate) mtu: Option<u32>,
    pub(crate) hairpin: bool,
    /// isolated from other isolated ports of the bridge
    pub(crate) isolated: bool,
    /// the pod sends from `mac` only
    pub(crate) guarded: bool,
    /// the pod's end stays down
    pub(crate) down: bool,
}

/// Plans the attachment `id` to `network` with the addresses that were allocated for it.
pub(crate) fn pod(
    config: &PluginConfig,
    network: &str,
    id: &AttachmentId,
    allocated: &AddResult,
) -> Result<PodPlan, CniError> {
    // The reference plugins' order is bridge (if there is one), host end, pod's end.
    let pod_end = if config.bridge.is_some() { 2 } else { 1 };
    let mut ips = Vec::new();
    for ip in &allocated.ips {
        let gateway = match (ip.gateway, config.gateway) {
            (None, Gateway::Address | Gateway::DefaultRoute) => Some(first_address(ip.address)),
            (gateway, _) => gateway,
        };
        if gateway == Some(ip.address.ip()) {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!(
                    "{} is both the pod's address and its gateway: give the range another gateway",
                    ip.address.ip()
                ),
            ));
        }
        ips.push(IpAssignment { interface: Some(pod_end), address: ip.address, gateway });
    }
    let addresses: Vec<IpNetwork> = ips.iter().map(|ip| ip.address).collect();
    let forwards: Vec<Forward> =
        config.ports.as_ref().map(|ports| ports.forwards(&addresses)).transpose()?.unwrap_or_default();
    let host = attachment::host_veth(id);
    let mac = config.mac.unwrap_or_else(|| attachment::pod_mac(ips.first().map(|ip| ip.address.ip()), id));
    Ok(PodPlan {
        bridge: config.bridge.as_ref().map(|name| BridgePlan {
            name: name.clone(),
            mac: bridge_mac(name, &ips),
            mtu: config.mtu,
            addresses: if config.gateway == Gateway::None { Vec::new() } else { gateway_addresses(&ips) },
            stale: config.stale,
            promiscuous: config.promiscuous,
        }),
        veth: VethPlan {
            alias: attachment::alias(network, id),
            pod: id.ifname.clone(),
            host_mac: Mac::derive(&format!("host end {host}")),
            host,
            mac,
            mtu: config.mtu,
            hairpin: config.hairpin,
            isolated: config.isolated,
            guarded: config.guarded,
            down: config.down,
        },
        routes: routes(config.gateway, &ips, &allocated.routes),
        limits: config.limits,
        dns: if config.dns == Dns::default() { allocated.dns.clone() } else { config.dns.clone() },
        ports: Record::of(network, id, forwards),
        masquerade: config.masquerade.as_ref().map(|networks| own_networks(networks, addresses.iter().copied())),
        sysctls: settings::for_interface(&config.sysctls, &id.ifname),
        ips,
    })
}

impl PodPlan {
    /// What is recorded of it, and programmed in nftables.
    pub(crate) fn record(&self, sandbox: &Sandbox) -> Attached {
        let addresses = self.ips.iter().map(|ip| ip.address.ip()).collect();
        Attached {
            masquerade: self.masquerade.clone(),
            hardware_address: self.veth.guarded.then(|| self.veth.mac.to_string()),
            ..Attached::new(&self.ports.network, sandbox, addresses)
        }
    }

    /// The result to print, once the bridge's real address, if there is a bridge, is known.
    pub(crate) fn result(self, bridge_mac: Option<Mac>, sandbox: &Path) -> AddResult {
        let interface = |name: &str, mac: Mac, sandbox: String| Interface {
            name: name.into(),
            mac: mac.to_string(),
            mtu: self.veth.mtu,
            sandbox,
            ..Interface::default()
        };
        let bridge =
            self.bridge.as_ref().map(|plan| interface(&plan.name, bridge_mac.unwrap_or(plan.mac), String::new()));
        let pair = [
            interface(&self.veth.host, self.veth.host_mac, String::new()),
            interface(&self.veth.pod, self.veth.mac, sandbox.display().to_string()),
        ];
        AddResult {
            interfaces: bridge.into_iter().chain(pair).collect(),
            ips: self.ips,
            routes: self.routes,
            dns: self.dns,
        }
    }
}

/// What the pod's own networks are: `networks`, and the subnets of its addresses that lie in none of them.
pub(crate) fn own_networks(networks: &[IpNetwork], addresses: impl Iterator<Item = IpNetwork>) -> Vec<IpNetwork> {
    let mut own = networks.to_vec();
    for address in addresses {
        let subnet = with_prefix(address.network(), address.prefix());
        if !own.iter().any(|network| network.prefix() <= subnet.prefix() && network.contains(subnet.ip())) {
            own.push(subnet);
        }
    }
    own
}

/// Configured routes, and the default route of each family that has none yet; a route without a gateway goes over the
/// gateway of its family, as the reference plugins do.
fn routes(gateway: Gateway, ips: &[IpAssignment], configured: &[Route]) -> Vec<Route> {
    let gateway_for =
        |dst: IpNetwork| ips.iter().filter(|ip| ip.address.is_ipv4() == dst.is_ipv4()).find_map(|ip| ip.gateway);
    let mut routes: Vec<Route> = configured
        .iter()
        .map(|route| Route { gw: route.gw.or_else(|| gateway_for(route.dst)), ..route.clone() })
        .collect();
    if gateway == Gateway::DefaultRoute {
        for ip in ips {
            let dst = default_destination(ip.address);
            if !routes.iter().any(|route| route.dst == dst) {
                routes.push(Route::new(dst, ip.gateway));
            }
        }
    }
    routes
}

fn default_destination(family: IpNetwork) -> IpNetwork {
    let any = if family.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    with_prefix(any, 0)
}

fn gateway_addresses(ips: &[IpAssignment]) -> Vec<IpNetwork> {
    let mut addresses: Vec<IpNetwork> = Vec::new();
    for ip in ips {
        let Some(address) = ip.gateway.map(|gateway| with_prefix(gateway, ip.address.prefix())) else { continue };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The first usable address of the subnet, the customary gateway.
fn first_address(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | 1)),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | 1)),
    }
}

/// A bridge without an address of its own takes the lowest one of its ports, which changes as pods come and go and leaves
/// every pod's neighbour entry stale. Ours is fixed, and differs from node to node as the gateway address does.
fn bridge_mac(name: &str, ips: &[IpAssignment]) -> Mac {
    match ips.iter().find_map(|ip| ip.gateway) {
        Some(gateway) => Mac::derive(&format!("bridge {name} {gateway}")),
        None => Mac::derive(&format!("bridge {name}")),
    }
}

/// `ip/prefix`. Every length here was taken from a network of the same family, or is 0, so it is always a valid one.
fn with_prefix(ip: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(ip, prefix).unwrap_or_else(|_| IpNetwork::from(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::Allocation;

    fn config(gateway: Gateway) -> PluginConfig {
        PluginConfig {
            bridge: Some("cbr0".into()),
            gateway,
            stale: StaleAddress::ReplaceWhenIdle,
            mtu: Some(1450),
            hairpin: true,
            mac: None,
            limits: Limits::default(),
            dns: Dns::default(),
            masquerade: None,
            sysctls: BTreeMap::new(),
            promiscuous: false,
            isolated: false,
            guarded: false,
            down: false,
            ipam: Allocation::None,
            ports: None,
        }
    }

    fn allocated(addresses: &[(&str, Option<&str>)], routes: &[&str]) -> AddResult {
        let ip = |(address, gateway): &(&str, Option<&str>)| IpAssignment {
            interface: None,
            address: address.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        let route = |dst: &&str| Route::new(dst.parse().unwrap(), None);
        AddResult {
            ips: addresses.iter().map(ip).collect(),
            routes: routes.iter().map(route).collect(),
            ..AddResult::default()
        }
    }

    fn planned(gateway: Gateway, addresses: &[(&str, Option<&str>)], routes: &[&str]) -> Result<PodPlan, CniError> {
        let id = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
        pod(&config(gateway), "cbr0", &id, &allocated(addresses, routes))
    }

    fn shown(routes: &[Route]) -> Vec<String> {
        routes.iter().map(|route| format!("{} via {:?}", route.dst, route.gw.map(|gw| gw.to_string()))).collect()
    }

    #[test]
    fn a_default_gateway_gives_each_family_one_default_route() {
        let addresses = [("10.5.2.7/24", Some("10.5.2.1")), ("fd00:5::7/64", Some("fd00:5::1"))];
        let plan = planned(Gateway::DefaultRoute, &addresses, &[]).unwrap();
        assert_eq!(shown(&plan.routes), ["0.0.0.0/0 via Some(\"10.5.2.1\")", "::/0 via Some(\"fd00:5::1\")"]);
        let gateways: Vec<String> = plan.bridge.unwrap().addresses.iter().map(IpNetwork::to_string).collect();
        assert_eq!(gateways, ["10.5.2.1/24", "fd00:5::1/64"]);
        assert_eq!(plan.veth.mac.to_string(), "0a:58:0a:05:02:07");
        // A default route that is configured is not doubled.
        let plan = planned(Gateway::DefaultRoute, &addresses[..1], &["0.0.0.0/0"]).unwrap();
        assert_eq!(shown(&plan.routes), ["0.0.0.0/0 via Some(\"10.5.2.1\")"]);
    }

    #[test]
    fn routes_go_over_the_gateway_of_their_family() {
        let plan = planned(Gateway::Address, &[("10.5.2.7/24", None)], &["10.0.0.0/8", "fd00::/8"]).unwrap();
        assert_eq!(shown(&plan.routes), ["10.0.0.0/8 via Some(\"10.5.2.1\")", "fd00::/8 via None"]);
    }

    #[test]
    fn a_plain_switch_has_no_addresses() {
        let plan = planned(Gateway::None, &[("10.5.2.7/24", None)], &[]).unwrap();
        assert!(plan.bridge.as_ref().unwrap().addresses.is_empty() && plan.routes.is_empty());
        assert!(planned(Gateway::None, &[], &[]).unwrap().ips.is_empty());
    }

    #[test]
    fn a_pod_is_not_its_own_gateway() {
        let error = planned(Gateway::Address, &[("10.5.2.1/24", None)], &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("10.5.2.1"), "{}", error.msg);
    }

    #[test]
    fn the_bridge_keeps_its_address_whoever_is_plugged_in_first() {
        let of = |address| planned(Gateway::Address, &[(address, Some("10.5.2.1"))], &[]).unwrap().bridge.unwrap().mac;
        assert_eq!(of("10.5.2.7/24"), of("10.5.2.8/24"));
        let elsewhere = planned(Gateway::Address, &[("10.5.3.7/24", Some("10.5.3.1"))], &[]).unwrap();
        assert_ne!(of("10.5.2.7/24"), elsewhere.bridge.unwrap().mac);
    }

    #[test]
    fn the_result_lists_bridge_host_end_and_pod_end() {
        let addresses = [("10.5.2.7/24", Some("10.5.2.1"))];
        let plan = planned(Gateway::DefaultRoute, &addresses, &[]).unwrap();
        let host = plan.veth.host.clone();
        let result = plan.result(Some(Mac([2; 6])), Path::new("/run/netns/a"));
        let interfaces: Vec<(&str, &str)> =
            result.interfaces.iter().map(|interface| (interface.name.as_str(), interface.sandbox.as_str())).collect();
        assert_eq!(interfaces, [("cbr0", ""), (host.as_str(), ""), ("eth0", "/run/netns/a")]);
        assert_eq!(result.ips[0].interface, Some(2));
    }
}
