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
            if let Some(local) = uplink.local.get(*family) {
                endpoints.set(*family, Endpoint { public_ip: *local, data: None });
            }
        }
        Announcement { backend_type: TYPE.into(), endpoints }
    }

    pub(super) fn reach(self, uplink: &Uplink, peer: &Peer<'_>) -> Result<Overlay, String> {
        let gateway = peer.endpoint.public_ip;
        if !uplink.reaches_directly(gateway) {
            let name = &uplink.name;
            return Err(format!("{gateway} is not on the network of {name}, and host-gw has no way through a router"));
        }
        let route = Route { via: Some(gateway), dev: uplink.name.clone(), onlink: false };
        Ok(Overlay { routes: [(peer.subnet, route)].into(), ..Overlay::default() })
    }
}
