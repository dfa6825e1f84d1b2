//! The former settings of an interface, in the reference plugin's files: `<dataDir>/<container id>_<interface>.json`.

use super::settings::Settings;
use crate::notes::Notes;
use cni_spec::{AttachmentId, CniError, NetworkConfig};
use kernel::Mac;
use kernel::netlink::{Link, LinkChange};
use serde::{Deserialize, Serialize};

/// Where they are unless `dataDir` says otherwise; nothing that has to outlive a reboot.
const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// What was changed, as it was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Backup {
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
    pub(crate) fn of(link: &Link, settings: &Settings) -> Self {
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
    pub(crate) fn change(&self) -> LinkChange {
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

/// The backups of one network.
pub(crate) struct Backups<'a> {
    notes: Notes<'a>,
    network: &'a str,
}

impl<'a> Backups<'a> {
    /// `dataDir` of the configuration.
    pub(crate) fn of(config: &'a NetworkConfig) -> Result<Self, CniError> {
        Ok(Backups { notes: Notes::of(config, DEFAULT_DATA_DIR)?, network: &config.name })
    }

    /// Writes the file anew.
    pub(crate) fn save(&self, id: &AttachmentId, backup: Backup) -> Result<(), CniError> {
        self.notes.save(&name(id), id, &Backup { network: self.network.into(), ..backup })
    }

    /// The file's content, if it is of any use.
    pub(crate) fn load(&self, id: &AttachmentId) -> Option<Backup> {
        self.notes.load(&name(id))
    }

    /// Removes the file.
    pub(crate) fn remove(&self, id: &AttachmentId) -> Result<(), CniError> {
        self.notes.remove(&name(id), id, |_: &Backup| true)
    }

    /// Removes the files of this network's attachments that are not in `valid`.
    pub(crate) fn gc(&self, valid: &[AttachmentId]) -> Result<(), CniError> {
        self.notes.gc(valid, name, |backup: &Backup| backup.network == self.network)
    }
}

fn name(id: &AttachmentId) -> String {
    format!("{}_{}.json", id.container_id, id.ifname)
}
