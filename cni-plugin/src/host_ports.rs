//! Host ports: ports of the node that lead to ports of pods.
//!
//! What is in use is recorded on disk (`records`), and programmed as elements of one nftables table for each family
//! (`table`). The record comes first and goes last: whatever a crash leaves is found from it, by DEL, by GC, and by the
//! daemon, which puts back what somebody has removed ([`crate::restore::Restorer`]).

mod mapping;
mod records;
mod restore;
mod stale;
mod table;

pub use mapping::{Forward, HostPortConfig, Mapping, Masquerade};
pub use records::Record;
pub use table::{MARK, TABLE, table};

pub(crate) use mapping::directory;

use crate::boot_state::forget_dead_namespaces;
use crate::plugin::kernel_error;
use crate::shared_table::unless_there_is_no_nftables;
use crate::teardown::Failures;
use cni_spec::{AttachmentId, CniError, Code};
use ipnetwork::IpNetwork;
use kernel::Error;
use kernel::netlink::Netlink;
use kernel::nft::{Element, Family, Nft};
use kernel::sysctl;
use nix::errno::Errno;
use records::Records;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use table::{Elements, FAMILIES};

/// Where ports in use are recorded unless `hostPortsDir` says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/cni/cni-plugin/host-ports";

/// The host ports of this network namespace.
#[derive(Clone, Debug)]
pub struct HostPorts {
    directory: PathBuf,
}

impl HostPorts {
    /// Those recorded under `directory`.
    pub fn recorded_in(directory: impl Into<PathBuf>) -> Self {
        HostPorts { directory: directory.into() }
    }

    /// Makes the ports of `record` lead to its pod; ports that the same attachment had before are given up.
    ///
    /// # Errors
    /// `PortTaken` (103) if one belongs to another attachment, naming it; `Io`, `TryAgain`, `Kernel`. Nothing is left then.
    pub fn publish(&self, record: &Record) -> Result<(), CniError> {
        if record.forwards.is_empty() {
            return Ok(());
        }
        admit_loopback(&record.forwards).map_err(kernel_error)?;
        let mut nft = Nft::open().map_err(kernel_error)?;
        let key = record.key();
        // Looked for before the lock is taken: a table that goes in between is missed when its elements are added.
        let standing = standing(&record.forwards, &mut nft).map_err(kernel_error)?;
        {
            let records = Records::open(&self.directory)?;
            if let Some(former) = records.get(&key)? {
                take_down(&records, &former, &mut nft)?;
            }
            for forward in &record.forwards {
                if let Some(rival) = records.rivals(forward, &key)?.first() {
                    return Err(taken(forward, rival));
                }
            }
            if let Err(error) = put_up(&records, record, &standing, &mut nft) {
                // The reason of the failure is the answer; if this fails as well, DEL finds the record.
                take_down(&records, record, &mut nft).ok();
                return Err(error);
            }
        }
        warn(stale::forget_former_owners(&record.forwards, nft));
        Ok(())
    }

    /// Gives up the ports of `id`, whatever they are; none is success.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel`.
    pub fn withdraw(&self, id: &AttachmentId) -> Result<(), CniError> {
        let (former, mut nft) = {
            let Some(records) = Records::open_existing(&self.directory)? else { return Ok(()) };
            let key = records::key_of(id);
            // Without a record there is at most one in the making.
            let Some(former) = records.get(&key)? else { return records.remove(&key) };
            let mut nft = Nft::open().map_err(kernel_error)?;
            take_down(&records, &former, &mut nft)?;
            (former, nft)
        };
        self.mend(&former.forwards, &mut nft)?;
        warn(stale::forget_pod(&former.forwards, nft));
        Ok(())
    }

    /// Gives up the ports of all attachments of `network` but the `valid` ones, and brings the kernel's tables to what the
    /// records say.
    ///
    /// # Errors
    /// As for [`HostPorts::withdraw`]; one attachment's failure does not keep the others.
    pub fn collect(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        forget_dead_namespaces(&self.directory);
        let Some(records) = Records::open_existing(&self.directory)? else {
            // If there ever were any, somebody removed them: nobody has a port.
            let removed = Nft::open()
                .and_then(|mut nft| FAMILIES.iter().try_for_each(|family| nft.delete(*family, TABLE).map(drop)));
            return unless_there_is_no_nftables(removed).map_err(kernel_error);
        };
        let living: BTreeSet<String> = valid.iter().map(records::key_of).collect();
        let mut failures = Failures::default();
        let mut nft = Nft::open().map_err(kernel_error)?;
        let (all, damage) = records.all()?;
        failures.note_cni(damage.map_or(Ok(()), Err));
        let dead = all.iter().filter(|record| record.network == network && !living.contains(&record.key()));
        let mut gone = Vec::new();
        for record in dead {
            failures.note_cni(take_down(&records, record, &mut nft));
            gone.extend(record.forwards.iter().cloned());
        }
        failures.note_cni(in_force(&records).and_then(|forwards| ensure(&forwards, &mut nft).map(drop)));
        drop(records);
        warn(stale::forget_pod(&gone, nft));
        failures.into_result()
    }

    /// Makes those tables anew that somebody removed or changed, of the families that `forwards` are of.
    fn mend(&self, forwards: &[Forward], nft: &mut Nft) -> Result<(), CniError> {
        let standing = standing(forwards, nft).map_err(kernel_error)?;
        let broken: Vec<Family> = families(forwards).difference(&standing).copied().collect();
        if broken.is_empty() {
            return Ok(());
        }
        let records = Records::open(&self.directory)?;
        let forwards = in_force(&records)?;
        broken.into_iter().try_for_each(|family| replace(family, &forwards, nft)).map_err(kernel_error)
    }

    /// What differs from `record` on disk and in the kernel, in words.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel` if it cannot be told.
    pub fn differences(&self, record: &Record) -> Result<Vec<String>, CniError> {
        if record.forwards.is_empty() {
            return Ok(Vec::new());
        }
        let records = Records::open_existing(&self.directory)?;
        let mut nft = Nft::open().map_err(kernel_error)?;
        let mut differences = Vec::new();
        for family in families(&record.forwards) {
            let frame = table(family, []);
            if !nft.has_frame(&frame).map_err(kernel_error)? {
                differences.push(format!("the rules of nft table {} {TABLE} are missing or not ours", frame.family));
            }
        }
        for forward in &record.forwards {
            let held = records.as_ref().map_or(Ok(false), |records| records.holds(forward, &record.key()))?;
            if !held {
                differences.push(format!("host port {forward} is not recorded as this attachment's"));
            }
            let frame = table(table::family(forward), []);
            for (set, elements) in table::port_elements(forward) {
                for element in elements {
                    if !nft.has_element(&frame, set, &element).map_err(kernel_error)? {
                        let family = frame.family;
                        differences
                            .push(format!("host port {forward} is missing in set {set} of nft table {family} {TABLE}"));
                    }
                }
            }
        }
        Ok(differences)
    }

    /// Whether [`HostPorts::publish`] could record and program a port now.
    ///
    /// # Errors
    /// The reason, as for [`HostPorts::publish`].
    pub fn status(&self) -> Result<(), CniError> {
        Records::open(&self.directory)?;
        Nft::open().and_then(|mut nft| nft.generation()).map(drop).map_err(kernel_error)
    }

    /// Where ports in use are recorded.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Record, claims, elements: in this order. The rules of the `standing` families are there. Nothing is asked of the kernel
/// under the lock, and the elements are one transaction of those that it does one by one in any case.
fn put_up(records: &Records, record: &Record, standing: &BTreeSet<Family>, nft: &mut Nft) -> Result<(), CniError> {
    let key = record.key();
    records.put(record)?;
    for subnet in record.forwards.iter().map(Forward::subnet).collect::<BTreeSet<_>>() {
        records.join(subnet, &key)?;
    }
    for forward in &record.forwards {
        records.hold(forward, &key)?;
    }
    for family in families(&record.forwards) {
        let frame = table(family, []);
        let own = || record.forwards.iter().filter(|forward| table::family(forward) == family);
        let mut added = if standing.contains(&family) {
            add(nft, &frame, &table::elements(own()))
        } else {
            // Somebody removed the table, or changed it.
            Err(Error::new("adding to a table that is gone", Errno::ENOENT))
        };
        // Prefixes in a set must not overlap: one that lies within another is left out.
        if added.as_ref().is_err_and(|error| matches!(error.errno, Errno::EEXIST | Errno::ENOTEMPTY)) {
            let subnets = records.subnets()?;
            let within = |subnet: IpNetwork| subnets.iter().any(|other| *other != subnet && contains(*other, subnet));
            added = add(nft, &frame, &table::elements_but_subnets(own(), within));
        }
        match added {
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EBUSY | Errno::EEXIST | Errno::ENOTEMPTY) => {
                replace(family, &in_force(records)?, nft).map_err(kernel_error)?;
            }
            added => added.map_err(kernel_error)?,
        }
    }
    Ok(())
}

fn is_single(subnet: IpNetwork) -> bool {
    subnet.prefix() == if subnet.is_ipv4() { 32 } else { 128 }
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Elements, claims, record: the reverse.
fn take_down(records: &Records, record: &Record, nft: &mut Nft) -> Result<(), CniError> {
    let key = record.key();
    let mut held = Vec::new();
    for forward in &record.forwards {
        if records.holds(forward, &key)? {
            held.push(forward);
        }
    }
    for family in families(&record.forwards) {
        let mut elements = Elements::new();
        for forward in held.iter().filter(|forward| table::family(forward) == family) {
            for (set, element) in table::port_elements(forward) {
                elements.entry(set).or_default().extend(element);
            }
        }
        remove(nft, &table(family, []), &elements).map_err(kernel_error)?;
    }
    for forward in held {
        records.let_go(forward)?;
    }
    record.forwards.iter().try_for_each(|forward| records.tidy(forward))?;
    let subnets: BTreeSet<_> =
        record.forwards.iter().map(|forward| (table::family(forward), forward.subnet())).collect();
    let mut broken = BTreeSet::new();
    for (family, subnet) in subnets {
        if records.leave(subnet, &key)? {
            remove(nft, &table(family, []), &table::subnet_elements(subnet)).map_err(kernel_error)?;
            // What lay within it had been left out.
            if !is_single(subnet) && records.subnets()?.iter().any(|other| contains(subnet, *other)) {
                broken.insert(family);
            }
        }
    }
    records.remove(&key)?;
    if !broken.is_empty() {
        let forwards = in_force(records)?;
        for family in broken {
            replace(family, &forwards, nft).map_err(kernel_error)?;
        }
    }
    Ok(())
}

/// Every forward that a record has and holds.
fn in_force(records: &Records) -> Result<Vec<Forward>, CniError> {
    let (all, _damaged) = records.all()?;
    let mut forwards = Vec::new();
    for record in all {
        let key = record.key();
        for forward in record.forwards {
            if records.holds(&forward, &key)? {
                forwards.push(forward);
            }
        }
    }
    Ok(forwards)
}

/// Brings the tables to the forwards where they differ, and says whether they did.
fn ensure(forwards: &[Forward], nft: &mut Nft) -> Result<bool, CniError> {
    let mut changed = false;
    for family in FAMILIES {
        changed |= if forwards.iter().any(|forward| table::family(forward) == family) {
            nft.ensure(&table(family, forwards)).map_err(kernel_error)?
        } else {
            nft.delete(family, TABLE).map_err(kernel_error)?
        };
    }
    Ok(changed)
}

/// Makes the table of a family anew; without a forward there is none.
fn replace(family: Family, forwards: &[Forward], nft: &mut Nft) -> Result<(), Error> {
    if forwards.iter().any(|forward| table::family(forward) == family) {
        nft.replace(&table(family, forwards))
    } else {
        nft.delete(family, TABLE).map(drop)
    }
}

fn add(nft: &mut Nft, frame: &kernel::nft::Table, elements: &Elements) -> Result<(), Error> {
    let lists: Vec<(&str, Vec<Element>)> =
        elements.iter().map(|(set, elements)| (*set, elements.iter().cloned().collect())).collect();
    let lists: Vec<(&str, &[Element])> = lists.iter().map(|(set, elements)| (*set, elements.as_slice())).collect();
    nft.add_to_sets(frame, &lists)
}

fn remove(nft: &mut Nft, frame: &kernel::nft::Table, elements: &Elements) -> Result<(), Error> {
    for (set, elements) in elements {
        nft.remove_elements(frame, set, &elements.iter().cloned().collect::<Vec<_>>())?;
    }
    Ok(())
}

fn families(forwards: &[Forward]) -> BTreeSet<Family> {
    forwards.iter().map(table::family).collect()
}

/// Those families of `forwards` whose rules are all there.
fn standing(forwards: &[Forward], nft: &mut Nft) -> Result<BTreeSet<Family>, Error> {
    let mut found = BTreeSet::new();
    for family in families(forwards) {
        if nft.has_frame(&table(family, []))? {
            found.insert(family);
        }
    }
    Ok(found)
}

/// Lets packets from 127.0.0.1 out to the pods' device, on which the kernel would drop them; the rules keep everybody else
/// on that device from using it.
fn admit_loopback(forwards: &[Forward]) -> Result<(), Error> {
    let pods: BTreeSet<_> = forwards.iter().filter(|forward| forward.serves_loopback()).map(|f| f.pod.ip()).collect();
    if pods.is_empty() {
        return Ok(());
    }
    let mut host = Netlink::open()?;
    for pod in pods {
        // A pod that the host has no way to is unreachable by any of its addresses: not ours to complain about.
        let Some(device) = host.lookup(pod).ok().and_then(|route| route.dev) else { continue };
        if let Some(link) = host.link_by_index(device)? {
            sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", link.name), "1")?;
        }
    }
    Ok(())
}

fn taken(forward: &Forward, rival: &Record) -> CniError {
    let theirs = rival.forwards.iter().find(|other| {
        (other.protocol, other.host_port) == (forward.protocol, forward.host_port) && other.overlaps(forward.host)
    });
    let theirs = theirs.map(|other| format!(" ({other})")).unwrap_or_default();
    let told = |key: &str| rival.pod.get(key);
    let name = told("K8S_POD_NAMESPACE").zip(told("K8S_POD_NAME"));
    let pod = name.map(|(namespace, name)| format!("pod {namespace}/{name}, "));
    CniError::new(
        Code::PortTaken,
        format!(
            "host port {forward}: taken by {}container {} (interface {}, network {}){theirs}: choose another port, or \
             delete that container; if it is gone already, let the runtime run GC or DEL for it",
            pod.unwrap_or_default(),
            rival.container,
            rival.interface,
            rival.network
        ),
    )
}

/// A node whose kernel cannot list flows still has working ports, only that clients who never pause may hang on to a former
/// pod: worth a word on standard error, which runtimes log, and no failure (as upstream).
fn warn(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        eprintln!("host ports: {error}");
    }
}

#[cfg(test)]
mod tests;
