//! host-gw: a route to each node's subnet through the node itself. No encapsulation; the nodes share a network segment.

use super::{Desired, Peer};
use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint};
use crate::uplink::Uplink;
use kernel::Route;

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

    pub(super) fn desired(self, uplink: &Uplink, peers: &[Peer<'_>], desired: &mut Desired) {
        for peer in peers {
            if uplink.reaches_directly(peer.endpoint.public_ip) {
                let route = Route { via: Some(peer.endpoint.public_ip), dev: uplink.name.clone(), onlink: false };
                desired.overlay.routes.insert(peer.subnet, route);
            } else {
                desired.left_out.push(format!(
                    "{}: {} is not on the network of {}, and host-gw has no way through a router",
                    peer.lease, peer.endpoint.public_ip, uplink.name
                ));
            }
        }
    }
}
