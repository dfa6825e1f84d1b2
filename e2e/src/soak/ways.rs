//! The ways to attach a pod that are put to the test: chains as operators have them, with everything that leaves a trace.

use crate::Result;
use crate::runner::{Attachment, Network};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// One conflist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// `flannel-rs`: everything in one call: host ports, bandwidth limits, masquerade, sysctls
    Native,
    /// `bridge`, masqueraded
    Masquerade,
    /// `bridge` and every plugin that can follow it
    Chain,
    /// `ptp`, masqueraded
    PointToPoint,
    /// `flannel` and `portmap`, as kube-flannel ships them
    Flannel,
}

/// All of them.
pub const WAYS: [Way; 5] = [Way::Native, Way::Masquerade, Way::Chain, Way::PointToPoint, Way::Flannel];

/// How many addresses a network has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// few, so that one that is lost is missed soon
    Small,
    /// enough for a crowd
    Large,
}

impl Size {
    fn prefixes(self) -> (u8, u8) {
        match self {
            Size::Small => (29, 125),
            Size::Large => (21, 117),
        }
    }

    /// Pods that have room: less the network's address, the broadcast address, and the gateway.
    pub fn pods(self) -> usize {
        (1usize << (32 - self.prefixes().0)) - 3
    }
}

impl Way {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Native => "native",
            Way::Masquerade => "bridge+ipMasq",
            Way::Chain => "bridge+portmap+bandwidth+tuning+firewall",
            Way::PointToPoint => "ptp+ipMasq",
            Way::Flannel => "flannel+portmap",
        }
    }

    /// The network, with its files in `directory`.
    pub fn network(self, directory: &Path, size: Size) -> Result<Network> {
        let (number, (four, six)) = (self as u8, size.prefixes());
        let bridge = format!("soak{number}");
        let env = directory.join(format!("subnet{number}.env"));
        let lines = format!(
            "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.7{number}.0.1/{four}\nFLANNEL_IPV6_NETWORK=fd00::/8\n\
             FLANNEL_IPV6_SUBNET=fd00:7{number}::1/{six}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        fs::write(&env, lines)?;
        let [networks, ports, attachments] = ["networks", "host-ports", "attachments"].map(|name| directory.join(name));
        let subnets = [format!("10.7{number}.0.0/{four}"), format!("fd00:7{number}::/{six}")];
        let ipam = json!({
            "type": "host-local", "dataDir": networks, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "ranges": subnets.map(|subnet| json!([{"subnet": subnet}])),
        });
        let portmap = json!({"type": "portmap", "hostPortsDir": ports, "capabilities": {"portMappings": true}});
        let plugins = match self {
            Way::Native => json!([{
                "type": "flannel-rs", "bridge": bridge, "subnetFile": env, "dataDir": networks, "hostPortsDir": ports,
                "attachmentsDir": attachments, "ipMasq": true, "sysctl": {"net.core.somaxconn": "200"},
                "capabilities": {"portMappings": true, "bandwidth": true},
            }]),
            Way::Masquerade => json!([
                {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam,
                 "attachmentsDir": attachments},
            ]),
            Way::Chain => json!([
                {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipam": ipam,
                 "attachmentsDir": attachments},
                portmap,
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
                {"type": "tuning", "dataDir": directory.join("tuning"), "mtu": 1400, "promisc": true,
                 "sysctl": {"net.core.somaxconn": "200"}},
                {"type": "firewall", "ingressPolicy": "same-bridge", "attachmentsDir": attachments},
            ]),
            Way::PointToPoint => json!([{"type": "ptp", "ipMasq": true, "ipam": ipam, "attachmentsDir": attachments}]),
            Way::Flannel => json!([
                {"type": "flannel", "subnetFile": env, "dataDir": directory.join("flannel"),
                 "delegate": {"bridge": bridge, "hairpinMode": true, "isDefaultGateway": true, "attachmentsDir": attachments},
                 "ipam": {"dataDir": networks}},
                portmap,
            ]),
        };
        Network::new(json!({"cniVersion": "1.1.0", "name": format!("net{number}"), "plugins": plugins}))
    }

    /// A call of the network's address management alone.
    pub fn addresses(self, directory: &Path, size: Size) -> Result<Network> {
        let (number, (four, six)) = (self as u8, size.prefixes());
        let subnets = [format!("10.7{number}.0.0/{four}"), format!("fd00:7{number}::/{six}")];
        let ipam = json!({
            "type": "host-local", "dataDir": directory.join("networks"),
            "ranges": subnets.map(|subnet| json!([{"subnet": subnet}])),
        });
        let plugin = json!({"type": "host-local", "ipam": ipam});
        Network::new(json!({"cniVersion": "1.1.0", "name": format!("net{number}"), "plugins": [plugin]}))
    }

    /// `eth0` of container `id`, with the ports `port` and what else the runtime may ask for.
    pub fn attachment(self, id: String, netns: &Path, port: u16) -> Attachment {
        let capabilities = json!({
            "portMappings": [
                {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": port, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
            ],
            "bandwidth": {
                "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000,
            },
        });
        let capabilities: Map<String, Value> = capabilities.as_object().cloned().unwrap_or_default();
        Attachment { capabilities, ..Attachment::eth0(id, netns) }
    }
}
