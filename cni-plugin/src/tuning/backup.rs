//! The former settings of an interface, in the reference plugin's files: `<dataDir>/<container id>_<interface>.json`.

use super::settings::Settings;
use cni_spec::{AttachmentId, CniError, Code, NetworkConfig};
use kernel::Mac;
use kernel::netlink::{Link, LinkChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where they are unless `dataDir` says otherwise; nothing that has to outlive a reboot.
const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// Largest file that is read, in bytes.
const LARGEST: u64 = 64 << 10;

/// What was changed, as it was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backup {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    transmit_queue: Option<u32>,
    /// whose it is, for GC; the reference plugin, which has no GC, ignores it
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Backup {
    /// The present state of what `settings` change.
    pub(super) fn of(link: &Link, settings: &Settings) -> Self {
        let mac = settings.mac.and(link.mac);
        Backup {
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: settings.promiscuous.map(|_| link.promiscuous),
            mtu: settings.mtu.map(|_| link.mtu).unwrap_or_default(),
            allmulti: settings.all_multicast.map(|_| link.all_multicast),
            transmit_queue: settings.transmit_queue.map(|_| link.transmit_queue),
            network: String::new(),
        }
    }

    /// The way back.
    pub(super) fn change(&self) -> LinkChange {
        LinkChange {
            mac: self.mac.parse::<Mac>().ok(),
            mtu: Some(self.mtu).filter(|mtu| *mtu != 0),
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            transmit_queue: self.transmit_queue,
            ..LinkChange::default()
        }
    }
}

/// The directory of the files.
pub(super) struct Directory(PathBuf);

/// `dataDir` of the configuration.
pub(super) fn directory(config: &NetworkConfig) -> Result<Directory, CniError> {
    Ok(Directory(config.field("dataDir").string()?.unwrap_or(DEFAULT_DATA_DIR).into()))
}

impl Directory {
    /// Writes a file that is whole or not there.
    pub(super) fn save(&self, network: &str, id: &AttachmentId, backup: &Backup) -> Result<(), CniError> {
        let path = self.file(id);
        let backup = Backup { network: network.into(), ..backup.clone() };
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            let draft = self.draft(id);
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&serde_json::to_vec(&backup)?)?;
            fs::rename(draft, &path)
        };
        write().map_err(|error| failed("writing", &path, &error))
    }

    /// The file's content, if it is of any use.
    pub(super) fn load(&self, id: &AttachmentId) -> Option<Backup> {
        read(&self.file(id))
    }

    /// Removes the file.
    pub(super) fn remove(&self, id: &AttachmentId) -> Result<(), CniError> {
        remove(&self.file(id)).and(remove(&self.draft(id)))
    }

    /// Removes the files of this network's attachments that are not in `valid`.
    pub(super) fn gc(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        let kept: BTreeSet<PathBuf> = valid.iter().map(|id| self.file(id)).collect();
        let mut outcome = Ok(());
        for path in fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if !kept.contains(&path) && read(&path).is_some_and(|backup| backup.network == network) {
                outcome = outcome.and(remove(&path));
            }
        }
        outcome
    }

    fn file(&self, id: &AttachmentId) -> PathBuf {
        self.0.join(format!("{}_{}.json", id.container_id, id.ifname))
    }

    fn draft(&self, id: &AttachmentId) -> PathBuf {
        self.0.join(format!(".{}", crate::attachment::host_veth(id)))
    }
}

fn read(path: &Path) -> Option<Backup> {
    path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn remove(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removing", path, &error)),
        _ => Ok(()),
    }
}

fn failed(action: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::Io, format!("{action} {}: {error}", path.display()))
}
