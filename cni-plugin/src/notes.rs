//! Small JSON files that ADD leaves for DEL and GC, in the directory and under the names of the reference plugins: flannel's
//! scratch files and tuning's backups. Each is whole or not there, unless the power fails, which ends the pod as well.

use crate::attachment;
use crate::boot_state::{make_directory, names, read, remove, write};
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Largest file that is read, in bytes.
const LARGEST: usize = 1 << 20;

/// The notes of one network.
pub(crate) struct Notes<'a> {
    directory: PathBuf,
    network: &'a str,
}

impl<'a> Notes<'a> {
    /// In `dataDir` of the configuration, or else in `default`.
    ///
    /// # Errors
    /// `InvalidConfig` for a `dataDir` that is no text.
    pub(crate) fn of(config: &'a NetworkConfig, default: &str) -> Result<Self, CniError> {
        let directory = config.field("dataDir").string()?.unwrap_or(default).into();
        Ok(Notes { directory, network: &config.name })
    }

    /// Writes the note of `id` anew, under `name`.
    ///
    /// # Errors
    /// `Io`, naming the file.
    pub(crate) fn save(&self, name: &str, id: &AttachmentId, note: &impl Serialize) -> Result<(), CniError> {
        make_directory(&self.directory)?;
        write(&self.directory.join(name), &self.draft(id), note)
    }

    /// The note called `name`; none if it is missing or damaged.
    pub(crate) fn load<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        read(&self.directory.join(name), LARGEST).ok().flatten()
    }

    /// Removes what a killed ADD of `id` left in the making, and the note called `name` unless `ours` says that it is somebody
    /// else's.
    ///
    /// # Errors
    /// `Io`, naming the file.
    pub(crate) fn remove<T: DeserializeOwned>(
        &self,
        name: &str,
        id: &AttachmentId,
        ours: impl FnOnce(&T) -> bool,
    ) -> Result<(), CniError> {
        let drafted = remove(&self.draft(id)).map(drop);
        match self.load(name) {
            Some(note) if !ours(&note) => drafted,
            _ => remove(&self.directory.join(name)).and(drafted),
        }
    }

    /// Removes this network's notes and drafts but those of `valid`; `name` names a note, and `ours` tells whether one is
    /// this network's.
    ///
    /// # Errors
    /// `Io`, naming the directory, or the first file that stayed.
    pub(crate) fn gc<T: DeserializeOwned>(
        &self,
        valid: &[AttachmentId],
        name: impl Fn(&AttachmentId) -> String,
        ours: impl Fn(&T) -> bool,
    ) -> Result<(), CniError> {
        let mut kept: Vec<PathBuf> = valid.iter().map(|id| self.directory.join(name(id))).collect();
        kept.extend(valid.iter().map(|id| self.draft(id)));
        let prefix = draft_prefix(self.network);
        let mut outcome = Ok(());
        for name in names(&self.directory)? {
            let path = self.directory.join(&name);
            let leaves = || name.starts_with(&prefix) || self.load(&name).is_some_and(|note| ours(&note));
            if !kept.contains(&path) && leaves() {
                outcome = outcome.and(remove(&path).map(drop));
            }
        }
        outcome
    }

    /// Known by the attachment's name, so that DEL finds what a killed ADD left, and by the network's, so that GC does.
    fn draft(&self, id: &AttachmentId) -> PathBuf {
        self.directory.join(format!("{}{}", draft_prefix(self.network), attachment::host_veth(id)))
    }
}

fn draft_prefix(network: &str) -> String {
    let digest: String = Sha256::digest(network).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!(".{digest}.")
}
