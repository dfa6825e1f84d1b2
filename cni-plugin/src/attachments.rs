//! The attachments of this node, on disk: whose they are, and what each has in nftables, so that a flushed ruleset comes
//! back, and `status` can name the pods.
//!
//! | path | what |
//! |---|---|
//! | `<base>/<boot>.<namespace>/<network>/<hash>` 0600 | what the plugin that made the interface knows, JSON |
//! | `<base>/<boot>.<namespace>/<network>/<hash>.firewall` 0600 | the same of the `firewall` plugin |
//! | `....new`, `....gone` | one that is being written; one whose attachment is being removed, which counts no more |
//!
//! The hash is of container id and interface. There is no lock: an attachment's files are written by its own ADD and DEL only.
//! A record exists before what it tells of and is withdrawn before that goes, so that whoever restores it can tell afterwards
//! whether it was still wanted. Directories go with the last file in them.

mod held;

pub use held::Held;

use crate::boot_state::{self, failed, make_directory, names, read, remove, remove_if_empty};
use crate::{attachment, firewall, guard, masquerade, shared_table};
use cni_spec::{Arguments, AttachmentId, CniError, NetworkConfig, Sandbox};
use ipnetwork::IpNetwork;
use kernel::nft::Table;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where attachments are recorded unless `attachmentsDir` says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/cni/cni-plugin/attachments";

/// Largest record that is read, in bytes.
const LONGEST: usize = 1 << 20;
/// How often a directory is made that others remove at the same time.
const ATTEMPTS: usize = 8;
/// Longest network name that is a directory's, in bytes (NAME_MAX is 255).
const LONGEST_NETWORK: usize = 128;
/// What kubelets and their runtimes tell of a pod in `CNI_ARGS`.
const POD: [&str; 4] = ["K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"];
/// Longest of these values that is kept, in bytes: names in Kubernetes have 253 at most.
const LONGEST_VALUE: usize = 253;

/// One attachment, as one plugin sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Attached {
    /// the network
    pub network: String,
    /// the container
    pub container: String,
    /// its interface
    pub interface: String,
    /// path of the network namespace at the time of ADD
    pub sandbox: String,
    /// what `CNI_ARGS` tells of the pod, by the names used there: `K8S_POD_NAME`, `K8S_POD_NAMESPACE`, `K8S_POD_UID`,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod: BTreeMap<String, String>,
    /// the pod's addresses
    pub addresses: Vec<IpAddr>,
    /// what the pod sends out of these networks is masqueraded; none: nothing is
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Vec<IpNetwork>>,
    /// the only hardware address that the pod may send from, if that is watched
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_address: Option<String>,
    /// the firewall accepts the pod's traffic
    #[serde(skip_serializing_if = "is_false")]
    pub accepted: bool,
    /// the bridge that the firewall keeps apart from others
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated_bridge: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Attached {
    /// The attachment of `sandbox` to `network`, without anything.
    pub(crate) fn new(network: &str, sandbox: &Sandbox, addresses: Vec<IpAddr>) -> Self {
        Attached {
            network: network.into(),
            container: sandbox.id.container_id.clone(),
            interface: sandbox.id.ifname.clone(),
            sandbox: sandbox.netns.display().to_string(),
            pod: pod(&sandbox.args),
            addresses,
            ..Attached::default()
        }
    }

    /// Its name.
    pub(crate) fn id(&self) -> AttachmentId {
        AttachmentId { container_id: self.container.clone(), ifname: self.interface.clone() }
    }

    /// The comment on its elements.
    pub(crate) fn owner(&self) -> String {
        shared_table::owner(&self.network, &self.id())
    }

    /// Its part of each table that it has elements in.
    pub(crate) fn tables(&self) -> Vec<Table> {
        [masquerade::of(self), guard::of(self), firewall::of(self)].into_iter().flatten().collect()
    }
}

/// What `CNI_ARGS` tells of the pod, by the names used there.
pub(crate) fn pod(args: &Arguments) -> BTreeMap<String, String> {
    let told = POD.iter().filter_map(|key| Some((*key, args.get(*key)?)));
    told.filter(|(_, value)| (1..=LONGEST_VALUE).contains(&value.len())).map(|(k, v)| (k.into(), v.clone())).collect()
}

/// Which plugin a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// the one that makes the interface
    Interface,
    /// `firewall`
    Firewall,
}

/// The records of this boot and network namespace.
#[derive(Clone, Debug)]
pub struct Attachments {
    base: PathBuf,
}

impl Attachments {
    /// Those under `directory`.
    pub fn recorded_in(directory: impl Into<PathBuf>) -> Self {
        Attachments { base: directory.into() }
    }

    /// Where `config` has them.
    pub(crate) fn of(config: &NetworkConfig) -> Result<Self, CniError> {
        Ok(Self::recorded_in(config.field("attachmentsDir").string()?.unwrap_or(DEFAULT_DIRECTORY)))
    }

    /// Writes a record.
    fn put(&self, part: Part, record: &Attached) -> Result<(), CniError> {
        let boot = boot_state::boot()?;
        let directory = self.base.join(boot_state::place(&boot)?).join(directory_of(&record.network));
        let path = directory.join(file(&record.id(), part));
        let write = || boot_state::write(&path, &with(&path, NEW), record);
        if directory.is_dir() && write().is_ok() {
            return Ok(());
        }
        boot_state::forget_former_boots(&self.base, &boot);
        let mut outcome = Ok(());
        // There is none yet, or it goes with the last attachment in this moment, and perhaps in the next one again.
        for _attempt in 0..ATTEMPTS {
            make_directory(&directory)?;
            outcome = write();
            if outcome.is_ok() || directory.is_dir() {
                break;
            }
        }
        outcome
    }

    /// Withdraws a record: from now on nobody restores what it tells of. It is kept for a DEL that does not get to the end.
    fn retire(&self, part: Part, network: &str, id: &AttachmentId) -> Result<Option<Attached>, CniError> {
        let path = self.directory(network)?.join(file(id, part));
        let gone = with(&path, GONE);
        match fs::rename(&path, &gone) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("renaming", &path)(error)),
            // What cannot be read was written by nobody that we know: it is searched for without it.
            _ => Ok(read(&gone, LONGEST).ok().flatten()),
        }
    }

    /// Removes a record that was withdrawn.
    fn forget(&self, part: Part, network: &str, id: &AttachmentId) -> Result<(), CniError> {
        let directory = self.directory(network)?;
        let path = directory.join(file(id, part));
        for path in [with(&path, NEW), with(&path, GONE), path] {
            remove(&path)?;
        }
        remove_directories(&directory)
    }

    /// Removes the records of all attachments of `network` but the `valid` ones.
    pub(crate) fn forget_others(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        let directory = self.directory(network)?;
        let living: BTreeSet<String> =
            valid.iter().flat_map(|id| [Part::Interface, Part::Firewall].map(|part| file(id, part))).collect();
        for name in names(&directory)?.iter().filter(|name| !living.contains(*name)) {
            remove(&directory.join(name))?;
        }
        remove_directories(&directory)
    }

    /// Removes what is on record for network namespaces that are no more.
    pub(crate) fn forget_dead_namespaces(&self) {
        boot_state::forget_dead_namespaces(&self.base);
    }

    /// All records that can be read, each with its path: one that is damaged must not keep the others from being used.
    ///
    /// # Errors
    /// `Io` if a directory cannot be read, `Kernel` if it cannot be told which.
    pub fn all(&self) -> Result<Vec<(PathBuf, Attached)>, CniError> {
        let place = self.place()?;
        let mut found = Vec::new();
        for network in names(&place)? {
            let directory = place.join(network);
            for name in names(&directory)?.iter().filter(|name| !name.ends_with(NEW) && !name.ends_with(GONE)) {
                let path = directory.join(name);
                found.extend(read(&path, LONGEST).ok().flatten().map(|record| (path, record)));
            }
        }
        Ok(found)
    }

    /// When the records of each network last changed; it names no network as long as there is no attachment.
    fn changed(&self) -> Result<BTreeMap<String, SystemTime>, CniError> {
        let place = self.place()?;
        let modified = |name: &String| place.join(name).metadata().and_then(|metadata| metadata.modified()).ok();
        Ok(names(&place)?.into_iter().filter_map(|name| Some((name.clone(), modified(&name)?))).collect())
    }

    fn place(&self) -> Result<PathBuf, CniError> {
        Ok(self.base.join(boot_state::place(&boot_state::boot()?)?))
    }

    fn directory(&self, network: &str) -> Result<PathBuf, CniError> {
        Ok(self.place()?.join(directory_of(network)))
    }
}

const NEW: &str = ".new";
const GONE: &str = ".gone";

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn file(id: &AttachmentId, part: Part) -> String {
    let key = attachment::key(&id.container_id, &id.ifname);
    match part {
        Part::Interface => key,
        Part::Firewall => key + ".firewall",
    }
}

/// The name of a network is checked against the specification's character set, which has no slash and no dot in front.
fn directory_of(network: &str) -> String {
    if network.len() <= LONGEST_NETWORK {
        return network.into();
    }
    Sha256::digest(network).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn remove_directories(network: &Path) -> Result<(), CniError> {
    if remove_if_empty(network)?
        && let Some(place) = network.parent()
    {
        remove_if_empty(place)?;
    }
    Ok(())
}
