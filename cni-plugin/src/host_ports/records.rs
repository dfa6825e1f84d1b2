//! Which ports are in use, on disk: the source that the kernel's tables are made from.
//!
//! | path | what |
//! |---|---|
//! | `<base>/<boot>.<namespace>/` 0700 | the state of one host network namespace in one boot; others are never read |
//! | `.../lock` | flock(2), exclusive, for each operation |
//! | `.../records/<hash>` 0600 | an attachment and its forwards, JSON; the hash is of container id and interface |
//! | `.../claims/<protocol>-<port>/<address>` | symbolic link to the hash of the record that the port belongs to |
//! | `.../subnets/<subnet>/<hash>` | symbolic link, for each record with a pod in that subnet |
//!
//! A record exists before and after everything else that an attachment has, here and in the kernel, so that whatever a crash
//! leaves can be found from it. A port is in force if its claim leads to the record. With the links, an operation costs the
//! same however many records there are.
//!
//! Nothing is synced to the platter: ports do not outlive the boot.

use super::mapping::Forward;
use crate::attachment;
use crate::boot_state::{self, failed, make_directory, names, read, remove, remove_if_empty};
use cni_spec::{AttachmentId, CniError};
use ipam::ledger::lock::Lock;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long an operation waits for the lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest record that is read, in bytes: what the largest configuration can ask for, with room.
const LONGEST: usize = 32 << 20;
/// Beginning of the name of a record in the making, which no hash has.
const TEMPORARY: &str = "new-";

/// An attachment with ports of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// the network
    pub network: String,
    /// the container
    pub container: String,
    /// its interface
    pub interface: String,
    /// what `CNI_ARGS` tells of the pod (see [`crate::attachments::Attached`]), for people
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod: BTreeMap<String, String>,
    /// its ports
    pub forwards: Vec<Forward>,
}

impl Record {
    /// The record of `id`'s ports in `network`.
    pub fn of(network: &str, id: &AttachmentId, forwards: Vec<Forward>) -> Self {
        let (container, interface) = (id.container_id.clone(), id.ifname.clone());
        Record { network: network.into(), container, interface, pod: BTreeMap::new(), forwards }
    }

    /// The name of its file.
    pub(super) fn key(&self) -> String {
        key(&self.container, &self.interface)
    }
}

/// The name of an attachment's record.
pub(super) fn key_of(id: &AttachmentId) -> String {
    key(&id.container_id, &id.ifname)
}

fn key(container: &str, interface: &str) -> String {
    attachment::key(container, interface)
}

/// The state of this boot and network namespace, locked.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    _lock: Lock,
}

impl Records {
    /// Locks the state under `base`, making it where it is missing and removing that of former boots.
    pub(super) fn open(base: &Path) -> Result<Self, CniError> {
        let boot = boot_state::boot()?;
        let directory = base.join(boot_state::place(&boot)?);
        for part in ["records", "claims", "subnets"] {
            make_directory(&directory.join(part))?;
        }
        let records = Records::lock(directory)?;
        boot_state::forget_former_boots(base, &boot);
        Ok(records)
    }

    /// Locks the state under `base`, if there is any.
    pub(super) fn open_existing(base: &Path) -> Result<Option<Self>, CniError> {
        let directory = directory(base)?;
        if directory.join("records").is_dir() { Records::lock(directory).map(Some) } else { Ok(None) }
    }

    fn lock(directory: PathBuf) -> Result<Self, CniError> {
        let lock = Lock::acquire(&directory.join("lock"), PATIENCE)?;
        Ok(Records { directory, _lock: lock })
    }

    /// The record of this key.
    pub(super) fn get(&self, key: &str) -> Result<Option<Record>, CniError> {
        read(&self.directory.join("records").join(key), LONGEST)
    }

    /// All records that can be read, and the first failure: one that is damaged must not keep the others from being used.
    pub(super) fn all(&self) -> Result<(Vec<Record>, Option<CniError>), CniError> {
        let (mut records, mut damage) = (Vec::new(), None);
        for key in names(&self.directory.join("records"))? {
            if key.starts_with(TEMPORARY) {
                // Its maker held the lock that we hold now: it is dead.
                remove(&self.directory.join("records").join(&key))?;
                continue;
            }
            match self.get(&key) {
                Ok(record) => records.extend(record),
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        records.sort_by(|a, b| (&a.container, &a.interface).cmp(&(&b.container, &b.interface)));
        Ok((records, damage))
    }

    /// Writes a record, whole or not at all.
    pub(super) fn put(&self, record: &Record) -> Result<(), CniError> {
        let directory = self.directory.join("records");
        let (path, temporary) = (directory.join(record.key()), directory.join(format!("{TEMPORARY}{}", record.key())));
        boot_state::write(&path, &temporary, record)
    }

    /// Removes a record, also one in the making; none is fine.
    pub(super) fn remove(&self, key: &str) -> Result<(), CniError> {
        let directory = self.directory.join("records");
        remove(&directory.join(format!("{TEMPORARY}{key}")))?;
        remove(&directory.join(key)).map(drop)
    }

    /// The records, other than `key`, that have a claim on a port which overlaps with `forward`. A claim of nobody, whose
    /// record somebody removed by hand, is none.
    pub(super) fn rivals(&self, forward: &Forward, key: &str) -> Result<Vec<Record>, CniError> {
        let directory = self.port(forward);
        let mut rivals = Vec::new();
        for name in names(&directory)? {
            if !name.parse::<IpAddr>().is_ok_and(|address| forward.overlaps(address)) {
                continue;
            }
            let claim = directory.join(&name);
            let owner = read_link(&claim)?.unwrap_or_default();
            if owner == key {
                continue;
            }
            match self.get(&owner)? {
                Some(record) => rivals.push(record),
                None => drop(remove(&claim)?),
            }
        }
        Ok(rivals)
    }

    /// Whether the port is in force for the record `key`.
    pub(super) fn holds(&self, forward: &Forward, key: &str) -> Result<bool, CniError> {
        Ok(read_link(&self.claim(forward))?.as_deref() == Some(key))
    }

    /// Takes a place in a subnet for the record `key`.
    pub(super) fn join(&self, subnet: IpNetwork, key: &str) -> Result<(), CniError> {
        let directory = self.subnet(subnet);
        make_directory(&directory)?;
        point(&directory.join(key), key)
    }

    /// Claims a port for the record `key`.
    pub(super) fn hold(&self, forward: &Forward, key: &str) -> Result<(), CniError> {
        make_directory(&self.port(forward))?;
        point(&self.claim(forward), key)
    }

    /// Gives up a port that [`Records::holds`].
    pub(super) fn let_go(&self, forward: &Forward) -> Result<(), CniError> {
        remove(&self.claim(forward)).map(drop)
    }

    /// Removes what is left of a port that nobody claims, also by a process that was killed between that and the claim.
    pub(super) fn tidy(&self, forward: &Forward) -> Result<(), CniError> {
        remove_if_empty(&self.port(forward)).map(drop)
    }

    /// Gives up a place in a subnet. True if it was the last, or there was none left.
    pub(super) fn leave(&self, subnet: IpNetwork, key: &str) -> Result<bool, CniError> {
        let directory = self.subnet(subnet);
        remove(&directory.join(key))?;
        remove_if_empty(&directory)
    }

    /// The subnets in use.
    pub(super) fn subnets(&self) -> Result<Vec<IpNetwork>, CniError> {
        let names = names(&self.directory.join("subnets"))?;
        Ok(names.iter().filter_map(|name| name.replace('_', "/").parse().ok()).collect())
    }

    fn port(&self, forward: &Forward) -> PathBuf {
        self.directory.join("claims").join(format!("{}-{}", forward.protocol, forward.host_port))
    }

    fn claim(&self, forward: &Forward) -> PathBuf {
        self.port(forward).join(forward.host.to_string())
    }

    fn subnet(&self, subnet: IpNetwork) -> PathBuf {
        self.directory.join("subnets").join(subnet.to_string().replace('/', "_"))
    }
}

/// When a record of this boot and namespace was last added or removed; none if there never was one.
pub(super) fn changed(base: &Path) -> Result<Option<SystemTime>, CniError> {
    let records = directory(base)?.join("records");
    Ok(records.metadata().and_then(|metadata| metadata.modified()).ok())
}

fn directory(base: &Path) -> Result<PathBuf, CniError> {
    Ok(base.join(boot_state::place(&boot_state::boot()?)?))
}

fn read_link(path: &Path) -> Result<Option<String>, CniError> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.into_os_string().into_string().ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

fn point(link: &Path, target: &str) -> Result<(), CniError> {
    match symlink(target, link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && read_link(link)?.as_deref() == Some(target) => Ok(()),
        made => made.map_err(failed("creating", link)),
    }
}
