//! What stays on a node between pods, and goes with the plugins: bridges without ports, nftables tables without elements, and
//! the directories of addresses and records.

use crate::attachments::Attachments;
use crate::boot_state::{self, names, remove_if_empty};
use crate::bridge::BRIDGE_ALIAS;
use crate::{attachment, host_ports};
use cni_spec::CniError;
use kernel::netlink::{Link, LinkKind, Netlink};
use kernel::nft::{Family, Nft};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

/// The tables by family; one that ends in a hyphen stands for all that begin so.
const TABLES: [(Family, &str); 5] = [
    (Family::Ip, host_ports::TABLE),
    (Family::Ip6, host_ports::TABLE),
    (Family::Inet, "cni-firewall"),
    (Family::Inet, "cni-masquerade-"),
    (Family::Bridge, "cni-macspoof"),
];

/// Removes all of it. `state` is what holds the directories of the plugins' defaults (`/var/lib/cni`).
///
/// # Errors
/// A pod is still attached, and nothing was removed; or what could not be removed, a line each.
pub(crate) fn remove(state: &Path) -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(text)?;
    let links = without_pods(&mut netlink, state)?;
    let mut failures = Vec::new();
    for bridge in links.iter().filter(|link| is_idle_bridge(link, &links)) {
        failures.extend(netlink.delete_link(&bridge.name).err().map(text));
    }
    failures.extend(tables().err().map(text));
    failures.extend(directories(state).err().map(text));
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// Whether [`remove`] would refuse; nothing is removed.
///
/// # Errors
/// A pod is still attached, or that cannot be told.
pub(crate) fn check(state: &Path) -> Result<(), String> {
    without_pods(&mut Netlink::open().map_err(text)?, state).map(drop)
}

/// All links, if none is a pod's and no pod is recorded.
fn without_pods(netlink: &mut Netlink, state: &Path) -> Result<Vec<Link>, String> {
    let links = netlink.links().map_err(text)?;
    let attachments = state.join("cni-plugin/attachments");
    let recorded = Attachments::recorded_in(&attachments).all().map_err(text)?.into_iter().next();
    let attached = links.iter().find(|link| link.alias.starts_with(attachment::MARK)).map(|link| link.alias.clone());
    match attached.or(recorded.map(|(_, record)| record.owner())) {
        Some(pod) => Err(format!("a pod is still attached ({pod}): remove the pods first")),
        None => Ok(links),
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn is_idle_bridge(link: &Link, all: &[Link]) -> bool {
    link.kind == LinkKind::Bridge
        && link.alias == BRIDGE_ALIAS
        && all.iter().all(|port| port.master != Some(link.index))
}

fn tables() -> kernel::Result<()> {
    let mut nft = Nft::open()?;
    for (family, wanted) in TABLES {
        let is_wanted = |name: &String| *name == *wanted || (wanted.ends_with('-') && name.starts_with(wanted));
        for name in nft.table_names(family)?.iter().filter(|name| is_wanted(name)) {
            nft.delete(family, name)?;
        }
    }
    Ok(())
}

fn directories(state: &Path) -> Result<(), CniError> {
    let place = boot_state::place(&boot_state::boot()?)?;
    let records = state.join("cni-plugin");
    for kind in ["attachments", "host-ports"] {
        let base = records.join(kind);
        remove_all(&base.join(&place))?;
        remove_if_empty(&base)?;
    }
    let networks = state.join("networks");
    let index = networks.join(".index");
    for network in names(&networks)?.iter().filter(|name| !name.starts_with('.')) {
        let directory = networks.join(network);
        let held = names(&directory).unwrap_or_default();
        // An address in use, whoever reserved it.
        if held.iter().any(|name| name.parse::<IpAddr>().is_ok()) {
            continue;
        }
        for name in held.iter().filter(|name| *name == "lock" || name.starts_with("last_reserved_ip.")) {
            boot_state::remove(&directory.join(name))?;
        }
        remove_all(&index.join(network))?;
        remove_if_empty(&directory)?;
    }
    for directory in [index, networks, records, state.join("flannel")] {
        remove_if_empty(&directory)?;
    }
    Ok(())
}

fn remove_all(directory: &Path) -> Result<(), CniError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(boot_state::failed("removing", directory)(error)),
        _ => Ok(()),
    }
}
