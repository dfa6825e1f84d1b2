//! The delegate's configuration as ADD used it, in the file where flannel's own plugin keeps it: `<dataDir>/<container id>`.
//! With it that plugin can remove our pods, and we its; ours do not need it.

use crate::attachment;
use cni_spec::{AttachmentId, CniError, Code, NetworkConfig};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The directory.
pub(super) struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    /// `dataDir` of the configuration.
    pub(super) fn of(config: &NetworkConfig) -> Result<Self, CniError> {
        let directory = config.field("dataDir").string()?.unwrap_or(DEFAULT_DATA_DIR).into();
        Ok(Scratch { directory })
    }

    /// Writes the file anew. It is whole or not there, unless the power fails, which ends the pod as well.
    pub(super) fn save(&self, network: &str, id: &AttachmentId, rendered: &Map<String, Value>) -> Result<(), CniError> {
        let path = self.file(id);
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let draft = self.draft(network, id);
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&serde_json::to_vec(rendered)?)?;
            fs::rename(draft, &path)
        };
        write().map_err(|error| failed("writing", &path, &error))
    }

    /// What ADD wrote for this attachment; none if the file is missing, damaged or another network's (it has the name of the
    /// container alone, and the last interface wins).
    pub(super) fn load(&self, network: &str, id: &AttachmentId) -> Option<Map<String, Value>> {
        read(&self.file(id)).filter(|rendered| is_of(network, rendered))
    }

    /// Removes the file, unless another network wrote it.
    pub(super) fn remove(&self, network: &str, id: &AttachmentId) -> Result<(), CniError> {
        let path = self.file(id);
        let drafted = remove(&self.draft(network, id));
        match read(&path) {
            Some(rendered) if !is_of(network, &rendered) => drafted,
            _ => remove(&path).and(drafted),
        }
    }

    /// Removes the files of this network's containers that have no attachment in `valid`.
    pub(super) fn gc(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("listing", &self.directory, &error)),
        };
        let kept: BTreeSet<PathBuf> = valid.iter().flat_map(|id| [self.file(id), self.draft(network, id)]).collect();
        let draft = self.directory.join(draft_prefix(network));
        let is_draft = |path: &Path| path.to_string_lossy().starts_with(&*draft.to_string_lossy());
        let mut outcome = Ok(());
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path)) {
            if is_draft(&path) || read(&path).is_some_and(|rendered| is_of(network, &rendered)) {
                outcome = outcome.and(remove(&path));
            }
        }
        outcome
    }

    fn file(&self, id: &AttachmentId) -> PathBuf {
        self.directory.join(&id.container_id)
    }

    /// Known by the attachment's name, so that DEL finds what a killed ADD left.
    fn draft(&self, network: &str, id: &AttachmentId) -> PathBuf {
        self.directory.join(format!("{}{}", draft_prefix(network), attachment::host_veth(id)))
    }
}

fn draft_prefix(network: &str) -> String {
    let digest: String = Sha256::digest(network).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!(".{digest}.")
}

fn is_of(network: &str, rendered: &Map<String, Value>) -> bool {
    rendered.get("name").is_some_and(|name| name == network) && rendered.get("type").is_some_and(Value::is_string)
}

fn read(path: &Path) -> Option<Map<String, Value>> {
    // Only files that say so themselves; a pipe would keep us waiting.
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
