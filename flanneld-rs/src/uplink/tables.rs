//! The kernel's tables, as far as the choice of interfaces depends on them.

use super::Choice;
use kernel::netlink::{AddressEntry, Link, LinkKind, Netlink, RouteEntry};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
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
    /// names of the drivers of hardware, by index of the link
    pub drivers: BTreeMap<u32, String>,
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
        let links = netlink.links()?;
        let mut drivers = BTreeMap::new();
        // The kernel's own devices have the name of a kind.
        for link in links.iter().filter(|link| link.kind == LinkKind::Other(String::new())) {
            // Some drivers refuse to say while their device is down: then it is not known.
            if let Ok(Some(driver)) = netlink.driver(&link.name) {
                drivers.insert(link.index, driver);
            }
        }
        Ok(Tables {
            links,
            drivers,
            addresses: netlink.address_entries()?,
            // With thousands of peers they are long.
            routes: if choice.wants_routes() { netlink.routes()? } else { Vec::new() },
            reaching,
        })
    }

    /// The drivers of an interface and of all that is below it: ports of a bridge or bond, the device of a VLAN.
    pub(super) fn drivers_beneath(&self, index: u32) -> BTreeSet<String> {
        let mut found = BTreeSet::from([index]);
        let mut next = vec![index];
        while let Some(index) = next.pop() {
            let is_below = |link: &&Link| link.master == Some(index);
            let below = self.links.iter().find(|link| link.index == index).and_then(|link| link.lower);
            let below = below.into_iter().chain(self.links.iter().filter(is_below).map(|link| link.index));
            next.extend(below.filter(|index| found.insert(*index)));
        }
        found.iter().filter_map(|index| self.drivers.get(index)).cloned().collect()
    }
}
