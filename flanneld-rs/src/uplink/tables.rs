//! The kernel's tables, as far as the choice of interfaces depends on them.

use super::Choice;
use kernel::netlink::{AddressEntry, Link, Netlink, RouteEntry};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A snapshot of them.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// all links
    pub links: Vec<Link>,
    /// all addresses
    pub addresses: Vec<AddressEntry>,
    /// the routing tables, unless the operator's choice makes them irrelevant
    pub routes: Vec<RouteEntry>,
    /// the routes to the addresses of `--iface-can-reach`; an address that there is no route to is missing
    pub reaching: BTreeMap<IpAddr, RouteEntry>,
}

impl Tables {
    /// Reads them.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn read(netlink: &mut Netlink, choice: &Choice) -> kernel::Result<Self> {
        let mut reaching = BTreeMap::new();
        for address in choice.can_reach() {
            match netlink.lookup(*address) {
                Ok(route) => drop(reaching.insert(*address, route)),
                Err(error) if matches!(error.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => {}
                // A kernel without the family, or a route that drops what it gets.
                Err(error) if matches!(error.errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Tables {
            links: netlink.links()?,
            addresses: netlink.address_entries()?,
            // With thousands of peers they are long.
            routes: if choice.wants_routes() { netlink.routes()? } else { Vec::new() },
            reaching,
        })
    }
}
