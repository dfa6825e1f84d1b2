//! The delegate's configuration as ADD used it, in the file where flannel's own plugin keeps it: `<dataDir>/<container id>`.
//! With it that plugin can remove our pods, and we its; ours do not need it.

use crate::notes::Notes;
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use serde_json::{Map, Value};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// The notes of one network.
pub(super) struct Scratch<'a> {
    notes: Notes<'a>,
    network: &'a str,
}

impl<'a> Scratch<'a> {
    /// `dataDir` of the configuration.
    pub(super) fn of(config: &'a NetworkConfig) -> Result<Self, CniError> {
        Ok(Scratch { notes: Notes::of(config, DEFAULT_DATA_DIR)?, network: &config.name })
    }

    /// Writes the file anew.
    pub(super) fn save(&self, id: &AttachmentId, rendered: &Map<String, Value>) -> Result<(), CniError> {
        self.notes.save(&id.container_id, id, rendered)
    }

    /// What ADD wrote for this attachment; none if the file is missing, damaged or another network's (it has the name of the
    /// container alone, and the last interface wins).
    pub(super) fn load(&self, id: &AttachmentId) -> Option<Map<String, Value>> {
        self.notes.load(&id.container_id).filter(|rendered| self.is_ours(rendered))
    }

    /// Removes the file, unless another network wrote it.
    pub(super) fn remove(&self, id: &AttachmentId) -> Result<(), CniError> {
        self.notes.remove(&id.container_id, id, |rendered| self.is_ours(rendered))
    }

    /// Removes the files of this network's containers that have no attachment in `valid`.
    pub(super) fn gc(&self, valid: &[AttachmentId]) -> Result<(), CniError> {
        self.notes.gc(valid, |id| id.container_id.clone(), |rendered| self.is_ours(rendered))
    }

    fn is_ours(&self, rendered: &Map<String, Value>) -> bool {
        rendered.get("name").is_some_and(|name| name == self.network)
            && rendered.get("type").is_some_and(Value::is_string)
    }
}
