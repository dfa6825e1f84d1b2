//! Uninstall: finds everything that the daemon put on this node by its marks, and removes it. No store is asked, and
//! nothing is remembered: what carries our mark is ours.

use crate::daemon;
use crate::family::Family;
use crate::files::Files;
use crate::firewall;
use crate::options::Options;
use crate::wireguard::Identity;
use kernel::netlink::{Netlink, RouteSpec};
use kernel::nft::Nft;

/// Removes devices, routes, nftables tables and files. Goes on after failures.
///
/// # Errors
/// All failures, a line each.
pub fn uninstall(options: &Options) -> Result<(), String> {
    let mut failures: Vec<String> = Vec::new();
    if let Err(error) = routes_and_devices(&mut failures) {
        failures.push(error.to_string());
    }
    match Nft::open() {
        Ok(mut nft) => {
            for family in Family::ALL {
                failures.extend(
                    nft.delete(firewall::nft_family(family), firewall::TABLE).err().map(|error| error.to_string()),
                );
            }
        }
        Err(error) => failures.push(error.to_string()),
    }
    let files = Files::of(options);
    failures.extend(files.remove().err());
    failures.extend(daemon::memory(options).remove().err());
    failures.extend(Identity::forget(&options.state_dir).err());
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn routes_and_devices(failures: &mut Vec<String>) -> kernel::Result<()> {
    let mut netlink = Netlink::open()?;
    for route in netlink.routes()?.iter().filter(|route| route.protocol == kernel::ROUTE_PROTOCOL) {
        let spec = RouteSpec {
            dst: route.dst,
            table: Some(route.table),
            metric: route.metric,
            kind: route.kind,
            ..RouteSpec::default()
        };
        failures.extend(netlink.delete_route(&spec).err().map(|error| error.to_string()));
    }
    for link in netlink.links()?.iter().filter(|link| link.alias == kernel::LINK_ALIAS) {
        failures.extend(netlink.delete_link(&link.name).err().map(|error| error.to_string()));
    }
    Ok(())
}
