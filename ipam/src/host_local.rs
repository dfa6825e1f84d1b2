//! The address management plugin `host-local`: as an executable, and in process.

mod config;
mod plugin;
mod resolv_conf;

#[cfg(fuzzing)]
pub(crate) use resolv_conf::parse as parse_resolv_conf;

use crate::error::IpamError;
use crate::ledger::{Census, Dead, Ledger, Life, Place};
use crate::range::RangeSet;
use cni_spec::{AddResult, AttachmentId, CniError, Code, Dns, IpAssignment, Route, Sandbox};
use ipnetwork::IpNetwork;
pub use plugin::Plugin;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// How many of the dead are buried at a time. Each may take milliseconds, under a lock that others wait for: a node that comes
/// back with tens of thousands of them starts its pods at once all the same.
const BATCH: usize = 64;

/// Where reservations are kept unless `dataDir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// A configuration that is ready to allocate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocal {
    /// range sets, at least one; an attachment gets one address from each
    pub sets: Vec<RangeSet>,
    /// addresses asked for, each at most once
    pub requested: BTreeSet<IpAddr>,
    /// routes for the result
    pub routes: Vec<Route>,
    /// name resolution for the result
    pub dns: Dns,
    /// directory of the networks' directories
    pub data_dir: PathBuf,
}

/// Removes what is left on the node of an attachment that is proven dead and had these addresses, before they are given to
/// somebody else.
pub type Undertaker<'a> = &'a dyn Fn(&AttachmentId, &[IpAddr]) -> Result<(), CniError>;

/// Reserves one address of each range set for `sandbox`: all or none. The result has `ips` without interface, `routes`,
/// `dns`. Where an address is wanted that an attachment has which is proven dead, `undertaker` sees to what is left of that,
/// and its addresses are free.
///
/// # Errors
/// `Ipam` (101) if a set is exhausted, the attachment has an address of a set already, or a requested address cannot be
/// given; `Io` for the disk; `TryAgain` if the lock is not free within 10 s; `InvalidConfig` for an unusable network name or
/// id.
pub fn add(
    ipam: &HostLocal,
    network: &str,
    sandbox: &Sandbox,
    undertaker: Undertaker<'_>,
) -> Result<AddResult, CniError> {
    let life = Life::of(&sandbox.netns);
    let mut ledger = Ledger::open(&Place::new(&ipam.data_dir, network)?)?;
    let reserved = choose(ipam, &mut ledger, &sandbox.id, undertaker)
        .and_then(|chosen| reserve(&mut ledger, &sandbox.id, chosen, life.as_ref()));
    ledger.close();
    Ok(AddResult { ips: reserved?, routes: ipam.routes.clone(), dns: ipam.dns.clone(), ..AddResult::default() })
}

/// Decides about all sets before anything is reserved.
fn choose(
    ipam: &HostLocal,
    ledger: &mut Ledger,
    id: &AttachmentId,
    undertaker: Undertaker<'_>,
) -> Result<Vec<IpAssignment>, CniError> {
    let mut held = ledger.held_by(id)?;
    if !held.is_empty() {
        // A container that is started again under its name, whose former life ended without DEL.
        let census = ledger.census(|ip| held.contains(&ip))?;
        bury(ledger, &census.dead, undertaker);
        held = ledger.held_by(id)?;
    }
    let mut asked = ipam.requested.clone();
    let mut chosen = Vec::new();
    for (index, set) in ipam.sets.iter().enumerate() {
        if let Some(address) = held.iter().copied().find(|ip| set.range_of(*ip).is_some()) {
            return Err(IpamError::Duplicate { address, container_id: id.container_id.clone() }.into());
        }
        let wanted = asked.iter().copied().find(|ip| set.range_of(*ip).is_some());
        let address = match wanted {
            Some(address) => granted(ledger, set, address, undertaker),
            None => free(ledger, set, index, undertaker),
        };
        let address = address.map_err(|error| {
            let error = CniError::from(error);
            CniError { msg: format!("failed to allocate for range {index}: {}", error.msg), ..error }
        })?;
        if wanted.is_some() {
            asked.remove(&address);
        }
        if let Some(range) = set.range_of(address) {
            // A prefix length that comes from a network of the same family is always valid.
            let with_length = IpNetwork::new(address, range.subnet().prefix());
            let gateway = Some(range.gateway());
            chosen.extend(with_length.ok().map(|address| IpAssignment { interface: None, address, gateway }));
        }
    }
    if asked.is_empty() {
        return Ok(chosen);
    }
    let left: Vec<String> = asked.iter().map(IpAddr::to_string).collect();
    let sets: Vec<String> = ipam.sets.iter().map(RangeSet::to_string).collect();
    let text = format!(
        "failed to allocate all requested IPs: {} (one address can be asked for in each of {})",
        left.join(", "),
        sets.join(" and ")
    );
    Err(CniError::new(Code::Ipam, text))
}

/// The address that was asked for, if it can be had.
fn granted(
    ledger: &mut Ledger,
    set: &RangeSet,
    address: IpAddr,
    undertaker: Undertaker<'_>,
) -> Result<IpAddr, IpamError> {
    let refused = |reason: String| Err(IpamError::Refused { address, reason });
    if let Some(purpose) = set.range_of(address).and_then(|range| range.reserved_for(address)) {
        return refused(format!("is the {purpose} of its subnet"));
    }
    if ledger.is_taken(address)? {
        let census = ledger.census(|ip| ip == address)?;
        bury(ledger, &census.dead, undertaker);
        if ledger.is_taken(address)? {
            let whom = ledger.holder_of(address)?.unwrap_or_else(|| "somebody whom its file does not name".into());
            return refused(format!("is not available in range set {set}: it belongs to {whom}"));
        }
    }
    Ok(address)
}

/// The next address, for which dead attachments make room if there is no other.
fn free(ledger: &mut Ledger, set: &RangeSet, index: usize, undertaker: Undertaker<'_>) -> Result<IpAddr, IpamError> {
    if let Some(address) = ledger.next(set, index)? {
        return Ok(address);
    }
    let census = ledger.census(|ip| set.range_of(ip).is_some())?;
    bury(ledger, census.dead.get(..BATCH).unwrap_or(&census.dead), undertaker);
    ledger.next(set, index)?.ok_or_else(|| exhausted(ledger, set, census))
}

fn exhausted(ledger: &Ledger, set: &RangeSet, census: Census) -> IpamError {
    let Census { alive, unknown, obstacle, .. } = census;
    IpamError::Exhausted { ranges: set.to_string(), directory: ledger.directory().to_owned(), alive, unknown, obstacle }
}

/// Frees the addresses of the dead, and says so on standard error, which runtimes keep.
fn bury(ledger: &mut Ledger, dead: &[Dead], undertaker: Undertaker<'_>) {
    for dead in dead {
        let id = dead.holder.as_ref().and_then(|holder| {
            Some(AttachmentId { container_id: holder.container_id.clone(), ifname: holder.ifname.clone()? })
        });
        let buried = id
            .map_or(Ok(()), |id| undertaker(&id, &dead.addresses))
            .and_then(|()| ledger.bury(dead).map_err(CniError::from));
        let addresses: Vec<String> = dead.addresses.iter().map(IpAddr::to_string).collect();
        let addresses = addresses.join(", ");
        let holder = dead.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let place = ledger.directory().display();
        match buried {
            Ok(()) => tell(&format!("{place}: {addresses} of {holder} is free again: {}", dead.proof)),
            Err(error) => tell(&format!("{place}: {addresses} of {holder} cannot be freed: {}", error.msg)),
        }
    }
}

/// Writes a line to standard error. Nobody need listen there, which eprintln! would panic about.
fn tell(line: &str) {
    #[cfg(test)]
    eprintln!("{line}");
    #[cfg(not(test))]
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}

fn reserve(
    ledger: &mut Ledger,
    id: &AttachmentId,
    chosen: Vec<IpAssignment>,
    life: Option<&Life>,
) -> Result<Vec<IpAssignment>, CniError> {
    for (index, assignment) in chosen.iter().enumerate() {
        let address = assignment.address.ip();
        let error = match ledger.reserve(id, address, index, life) {
            Ok(true) => continue,
            Ok(false) => IpamError::Refused { address, reason: "was taken by somebody who ignores the lock".into() },
            Err(error) => error,
        };
        for earlier in chosen.iter().take(index) {
            // If even this fails, the DEL that follows a failed ADD finds the rest.
            ledger.withdraw(earlier.address.ip()).ok();
        }
        return Err(error.into());
    }
    Ok(chosen)
}

/// Releases whatever `id` holds in `network`; nothing held is success.
///
/// # Errors
/// `Io`, `TryAgain`, `InvalidConfig` as for [`add`].
pub fn del(data_dir: &Path, network: &str, id: &AttachmentId) -> Result<(), CniError> {
    with(data_dir, network, |ledger| {
        let held = ledger.held_by(id)?;
        release_all(ledger, &held)
    })
    .map(Option::unwrap_or_default)
}

/// Releases those of `addresses` that `id` holds in `network`: what an [`add`] reserved for an attachment that then failed.
///
/// # Errors
/// As for [`del`].
pub fn release(data_dir: &Path, network: &str, id: &AttachmentId, addresses: &[IpAddr]) -> Result<(), CniError> {
    with(data_dir, network, |ledger| {
        let mut held = ledger.held_by(id)?;
        held.retain(|ip| addresses.contains(ip));
        release_all(ledger, &held)
    })
    .map(Option::unwrap_or_default)
}

/// Checks that `id` holds every one of `addresses` in `network`.
///
/// # Errors
/// `CheckFailed` naming the address and who holds it instead; otherwise as for [`del`].
pub fn check_held(data_dir: &Path, network: &str, id: &AttachmentId, addresses: &[IpAddr]) -> Result<(), CniError> {
    let place = data_dir.join(network);
    let lost = |ip: &IpAddr, holder: Option<String>| {
        let holder = holder.map_or_else(|| "is not reserved".to_owned(), |holder| format!("belongs to {holder}"));
        IpamError::NotHeld(format!(
            "address {ip} of container {} ({}) {holder} in {}: re-create the container",
            id.container_id,
            id.ifname,
            place.display()
        ))
    };
    let found = with(data_dir, network, |ledger| {
        let held = ledger.held_by(id)?;
        let missing = addresses.iter().find(|ip| !held.contains(ip));
        missing.map_or(Ok(()), |ip| Err(lost(ip, ledger.holder_of(*ip)?)))
    })?;
    match (found, addresses.first()) {
        (None, Some(ip)) => Err(lost(ip, None).into()),
        _ => Ok(()),
    }
}

/// Checks that `id` holds an address of each range set.
///
/// # Errors
/// `CheckFailed` naming the range set; otherwise as for [`del`].
pub fn check(ipam: &HostLocal, network: &str, id: &AttachmentId) -> Result<(), CniError> {
    let held = addresses_of(&ipam.data_dir, network, id)?;
    match ipam.sets.iter().find(|set| !held.iter().any(|ip| set.range_of(*ip).is_some())) {
        None => Ok(()),
        Some(set) => Err(IpamError::NotHeld(format!(
            "container {} holds no address of range set {set} for {} in {}: re-create it",
            id.container_id,
            id.ifname,
            ipam.data_dir.join(network).display()
        ))
        .into()),
    }
}

/// The addresses that `id` holds in `network`, in ascending order.
///
/// # Errors
/// As for [`del`].
pub fn addresses_of(data_dir: &Path, network: &str, id: &AttachmentId) -> Result<Vec<IpAddr>, CniError> {
    with(data_dir, network, |ledger| ledger.held_by(id)).map(Option::unwrap_or_default)
}

/// The addresses that `id` holds in `network`, and those of `listed` that nobody holds: what `id` may have left behind. An
/// address that `id` had once and that went to somebody else since is not among them.
///
/// # Errors
/// As for [`del`].
pub fn addresses_left_by(
    data_dir: &Path,
    network: &str,
    id: &AttachmentId,
    listed: &[IpAddr],
) -> Result<Vec<IpAddr>, CniError> {
    let found = with(data_dir, network, |ledger| {
        let mut left = ledger.held_by(id)?;
        for ip in listed {
            if !left.contains(ip) && ledger.holder_of(*ip)?.is_none() {
                left.push(*ip);
            }
        }
        Ok(left)
    })?;
    Ok(found.unwrap_or_else(|| listed.to_vec()))
}

/// The addresses held in `network` by anybody but `valid`, in ascending order.
///
/// # Errors
/// As for [`del`].
pub fn addresses_of_others(data_dir: &Path, network: &str, valid: &[AttachmentId]) -> Result<Vec<IpAddr>, CniError> {
    with(data_dir, network, |ledger| others(ledger, valid)).map(Option::unwrap_or_default)
}

/// Releases what anybody but `valid` holds in `network`, and what nobody can be said to hold.
///
/// # Errors
/// As for [`del`]; one address that cannot be released does not keep the others.
pub fn gc(data_dir: &Path, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
    with(data_dir, network, |ledger| {
        let others = others(ledger, valid)?;
        let released = release_all(ledger, &others);
        let nobodys = |(ip, holder): (&IpAddr, &Option<_>)| holder.is_none().then_some(*ip);
        let nobodys: BTreeSet<IpAddr> = ledger.reservations()?.iter().filter_map(nobodys).collect();
        if !nobodys.is_empty() {
            let census = ledger.census(|ip| nobodys.contains(&ip))?;
            bury(ledger, &census.dead, &|_, _| Ok(()));
        }
        released
    })
    .map(Option::unwrap_or_default)
}

/// Whether [`add`] would find an address in every range set now, one of a dead attachment included.
///
/// # Errors
/// `NotAvailable` (50) with the reason.
pub fn status(ipam: &HostLocal, network: &str) -> Result<(), CniError> {
    let look = |ledger: &mut Ledger| {
        ipam.sets.iter().enumerate().try_for_each(|(index, set)| {
            if ledger.next(set, index)?.is_some() {
                return Ok(());
            }
            let census = ledger.census(|ip| set.range_of(ip).is_some())?;
            if census.dead.is_empty() { Err(exhausted(ledger, set, census)) } else { Ok(()) }
        })
    };
    Place::new(&ipam.data_dir, network)
        .and_then(|place| Ledger::open(&place))
        .and_then(|mut ledger| {
            let found = look(&mut ledger);
            ledger.close();
            found
        })
        .map_err(|error| CniError::new(Code::NotAvailable, error.to_string()))
}

/// Does something with the ledger of `network`, if it has one.
fn with<T>(
    data_dir: &Path,
    network: &str,
    operation: impl FnOnce(&mut Ledger) -> Result<T, IpamError>,
) -> Result<Option<T>, CniError> {
    let Some(mut ledger) = Ledger::open_existing(&Place::new(data_dir, network)?)? else { return Ok(None) };
    let done = operation(&mut ledger);
    ledger.close();
    Ok(Some(done?))
}

fn others(ledger: &mut Ledger, valid: &[AttachmentId]) -> Result<Vec<IpAddr>, IpamError> {
    let named: BTreeSet<_> = valid.iter().map(|id| (id.container_id.as_str(), id.ifname.as_str())).collect();
    let containers: BTreeSet<_> = valid.iter().map(|id| id.container_id.as_str()).collect();
    let is_valid = |container_id: &str, ifname: Option<&str>| match ifname {
        Some(ifname) => named.contains(&(container_id, ifname)),
        None => containers.contains(container_id),
    };
    let reservations = ledger.reservations()?.iter();
    let others = reservations.filter_map(|(ip, holder)| {
        let holder = holder.as_ref()?;
        (!is_valid(&holder.container_id, holder.ifname.as_deref())).then_some(*ip)
    });
    Ok(others.collect())
}

/// Releases as much as possible and reports the first failure.
fn release_all(ledger: &mut Ledger, addresses: &[IpAddr]) -> Result<(), IpamError> {
    addresses.iter().map(|ip| ledger.release(*ip)).fold(Ok(()), Result::and)
}
