//! host-gw: a route to each node's subnet through the node itself. No encapsulation; the nodes share a network segment.

use super::Peer;
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint};
use crate::uplink::Uplink;
use kernel::{Overlay, Route};

/// The backend type in leases.
pub(super) const TYPE: &str = "host-gw";

/// The host-gw backend; it has no settings.
#[derive(Clone, Copy, Debug)]
pub struct HostGw;

impl HostGw {
    pub(super) fn announcement(self, uplink: &Uplink, families: &[Family]) -> Announcement {
        let mut endpoints = PerFamily::default();
        for family in families {
            // Other nodes route through the address that this interface really has (flannel refuses a public IP here).
            if let Some(public_ip) = uplink.local(*family) {
                endpoints.set(*family, Endpoint { public_ip, data: None });
            }
        }
        Announcement { backend_type: TYPE.into(), endpoints }
    }

    pub(super) fn reach(self, uplink: &Uplink, peer: &Peer<'_>) -> Result<Overlay, String> {
        let gateway = peer.endpoint.public_ip;
        let Some(way) = uplink.directly(gateway) else {
            let name = uplink.ways.get(peer.family).map_or("any interface", |way| &way.interface);
            return Err(format!("{gateway} is not on the network of {name}, and host-gw has no way through a router"));
        };
        let route = Route { via: Some(gateway), dev: way.interface.clone(), onlink: false };
        Ok(Overlay { routes: [(peer.subnet, route)].into(), ..Overlay::default() })
    }
}
