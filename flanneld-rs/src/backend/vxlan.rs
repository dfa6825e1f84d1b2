//! VXLAN: one device for each family, and for each peer a neighbour entry, a forwarding entry and a route, as flannel has
//! them: the peer's subnet is reached through the peer's own network address, which is the address of its device.

use super::{Means, Peer, pod_mtu};
use crate::checksum::Checksums;
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Lease};
use crate::network_config;
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::{Mac, Overlay, Route, Tunnel, VxlanLink};
use serde::{Deserialize, Serialize};

/// The backend type in leases.
pub(super) const TYPE: &str = "vxlan";
/// The port of Linux, which flannel uses too; IANA's 4789 came later (Documentation/networking/vxlan.rst).
const KERNEL_PORT: u16 = 8472;

/// What a node tells the others of its VXLAN device; field order and names are flannel's.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Vtep {
    #[serde(rename = "VNI", alias = "vni", alias = "Vni", default)]
    vni: u32,
    #[serde(rename = "VtepMAC", alias = "vtepMAC", alias = "VtepMac", alias = "vtepmac", with = "mac_text")]
    mac: Mac,
}

mod mac_text {
    use kernel::Mac;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The VXLAN backend.
#[derive(Clone, Debug)]
pub struct Vxlan {
    config: network_config::Vxlan,
    means: Means,
}

impl Vxlan {
    pub(super) fn new(config: network_config::Vxlan, means: Means) -> Self {
        Vxlan { config, means }
    }

    /// The same device with other settings.
    pub(super) fn with(&self, config: network_config::Vxlan) -> Self {
        Vxlan { config, means: self.means }
    }

    /// Name of the device of a family (flannel's).
    pub(super) fn device(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("flannel.{}", self.config.vni),
            Family::V6 => format!("flannel-v6.{}", self.config.vni),
        }
    }

    /// The UDP port that outer packets go to.
    pub(super) fn port(&self) -> u16 {
        self.config.port.unwrap_or(KERNEL_PORT)
    }

    /// The device's address: the one that it has already, or one that depends on nothing but the node's address, so that
    /// neither a restart nor a lost state directory makes the other nodes' entries stale.
    fn mac(&self, uplink: &Uplink, family: Family) -> Option<Mac> {
        let public = uplink.public(family)?;
        let derived = || Mac::derive(&format!("vtep {} {public}", self.device(family)));
        Some(self.means.macs.get(family).copied().unwrap_or_else(derived))
    }

    /// Who computes the checksums of pods' packets.
    pub(super) fn checksums(&self) -> Checksums {
        let choice = self.means.tx_checksum.unwrap_or(self.config.tx_checksum);
        Checksums { choice, kernel: self.means.kernel }
    }

    pub(super) fn announcement(&self, uplink: &Uplink, families: &[Family]) -> Announcement {
        let mut endpoints = PerFamily::default();
        for family in families {
            if let (Some(public_ip), Some(mac)) = (uplink.public(*family), self.mac(uplink, *family)) {
                let data = serde_json::to_string(&Vtep { vni: self.config.vni, mac }).ok();
                endpoints.set(*family, Endpoint { public_ip, data });
            }
        }
        Announcement { backend_type: TYPE.into(), endpoints }
    }

    /// The pod network has one MTU: that of the family with the larger outer header.
    pub(super) fn mtu(&self, uplink: &Uplink, families: &[Family]) -> u32 {
        pod_mtu(families, |family| self.device_mtu(uplink, family))
    }

    /// More than the underlay carries the kernel refuses: its tunnels of this kind fragment nothing.
    fn device_mtu(&self, uplink: &Uplink, family: Family) -> u32 {
        let underlay = uplink.mtu(&[family]);
        self.config.mtu.unwrap_or(underlay).min(underlay).saturating_sub(overhead(family))
    }

    /// Why the underlay cannot carry this family, if it cannot.
    fn too_small(&self, uplink: &Uplink, family: Family) -> Option<String> {
        let (mtu, least) = (self.device_mtu(uplink, family), family.least_mtu());
        (mtu < least).then(|| {
            let needed = least + overhead(family);
            format!(
                "the underlay leaves {mtu} bytes to a packet, and {family} needs {least}: give it an MTU of {needed}"
            )
        })
    }

    /// What this node has whoever its peers are: a device of each family, with its address.
    pub(super) fn base(&self, uplink: &Uplink, own: &Lease) -> Overlay {
        let mut base = Overlay::default();
        for (family, subnet) in own.subnets.iter() {
            let (Some(way), Some(mac)) = (uplink.ways.get(family), self.mac(uplink, family)) else { continue };
            if self.too_small(uplink, family).is_some() {
                continue;
            }
            let device = self.device(family);
            base.links.insert(
                device.clone(),
                Tunnel::Vxlan(VxlanLink {
                    vni: self.config.vni,
                    port: self.port(),
                    underlay: way.interface.clone(),
                    local: way.local,
                    mac,
                    mtu: self.device_mtu(uplink, family),
                    learning: self.config.learning,
                    gbp: self.config.gbp,
                    tx_checksum: self.checksums().offload(way),
                }),
            );
            base.addresses.insert((device, IpNetwork::from(subnet.network())));
        }
        base
    }

    pub(super) fn reach(&self, uplink: &Uplink, peer: &Peer<'_>) -> Result<Overlay, String> {
        let public_ip = peer.endpoint.public_ip;
        let mut part = Overlay::default();
        if let Some(way) = uplink.directly(public_ip).filter(|_| self.config.direct_routing) {
            let route = Route { via: Some(public_ip), dev: way.interface.clone(), onlink: false };
            part.routes.insert(peer.subnet, route);
            return Ok(part);
        }
        if let Some(reason) = self.too_small(uplink, peer.family) {
            return Err(reason);
        }
        let data = peer.endpoint.data.as_deref();
        let vtep: Vtep = serde_json::from_str(data.unwrap_or("null")).map_err(|error| {
            format!("unusable {} backend data {:?}: {error}", peer.family, data.unwrap_or("nothing"))
        })?;
        let (device, gateway) = (self.device(peer.family), peer.subnet.network());
        part.neighbours.insert((device.clone(), gateway), vtep.mac);
        part.fdb.insert((device.clone(), vtep.mac), public_ip);
        part.routes.insert(peer.subnet, Route { via: Some(gateway), dev: device, onlink: true });
        Ok(part)
    }
}

/// Outer IP header, UDP, VXLAN and inner Ethernet: 20 or 40, and 8 + 8 + 14 bytes (RFC 7348 section 5).
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}
