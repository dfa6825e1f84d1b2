//! Who holds which addresses, without reading the directory: an index that is believed only as long as nobody else has
//! touched the directory, and whose every answer is checked against the reservation.
//!
//! After each of our operations the directory and the file `stamp` are given the same time of modification. Whatever
//! happens to the directory afterwards (the reference plugin, an administrator, ourselves up to the point of a crash) gives
//! it another one, and the next operation makes the index anew. We set the time explicitly, from the fine clock, because
//! the kernel's own times move in ticks of some milliseconds, in which a foreign change could hide.

use super::{Holder, disk};
use crate::address::from_canonical_text;
use cni_spec::AttachmentId;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, FileTimes, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most addresses in an entry: what fits a symbolic link (PATH_MAX), with room.
const MOST: usize = 64;

/// The index, in the hands of whoever holds the lock.
#[derive(Debug)]
pub(super) struct Owners {
    network: PathBuf,
    entries: PathBuf,
    stamp: PathBuf,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// stamped for the directory as it is
    Current,
    /// right, but not stamped yet
    Changed,
    /// not to be believed
    Broken,
}

impl Owners {
    pub(super) fn open(network: &Path, side: &Path) -> Self {
        let stamp = side.join("stamp");
        let state = match (modified(network), modified(&stamp)) {
            (Some(network), Some(stamp)) if network == stamp => State::Current,
            _ => State::Broken,
        };
        Owners { network: network.to_owned(), entries: side.join("owners"), stamp, state }
    }

    /// Whether the index tells the state of the directory.
    pub(super) fn is_current(&self) -> bool {
        self.state != State::Broken
    }

    /// The addresses that `id` had when the index was written. None: the index is damaged.
    pub(super) fn of(&self, id: &AttachmentId) -> Option<Vec<IpAddr>> {
        if !self.is_current() {
            return None;
        }
        let named = Holder { container_id: id.container_id.clone(), ifname: Some(id.ifname.clone()) };
        let unnamed = Holder { ifname: None, ..named.clone() };
        let mut found = self.entry(&named)?;
        found.extend(self.entry(&unnamed)?);
        Some(found)
    }

    pub(super) fn add(&mut self, holder: &Holder, ip: IpAddr) {
        self.change(holder, |held| held.push(ip));
    }

    pub(super) fn remove(&mut self, holder: &Holder, ip: IpAddr) {
        self.change(holder, |held| held.retain(|other| *other != ip));
    }

    /// The index gave a wrong answer.
    pub(super) fn distrust(&mut self) {
        self.state = State::Broken;
    }

    /// The directory was changed without a change to the index.
    pub(super) fn directory_changed(&mut self) {
        if self.state == State::Current {
            self.state = State::Changed;
        }
    }

    /// Writes the index anew.
    pub(super) fn rebuild(&mut self, reservations: &BTreeMap<IpAddr, Option<Holder>>) {
        let mut held: BTreeMap<&Holder, Vec<IpAddr>> = BTreeMap::new();
        for (ip, holder) in reservations {
            if let Some(holder) = holder {
                held.entry(holder).or_default().push(*ip);
            }
        }
        let written =
            disk::remove_directory(&self.entries).and_then(|()| disk::make_directory(&self.entries, 0o700)).is_ok()
                && held.iter().all(|(holder, held)| self.write(holder, held));
        self.state = if written { State::Changed } else { State::Broken };
    }

    /// Declares the index valid for the directory as it is.
    pub(super) fn stamp(&mut self) {
        if self.state == State::Changed && self.set_times().is_some() {
            self.state = State::Current;
        }
    }

    /// First the directory, then the stamp: in between they differ. On a file system that does not keep the time to the
    /// nanosecond nothing is stamped, and every operation reads the directory.
    fn set_times(&self) -> Option<()> {
        let now = SystemTime::now();
        let times = FileTimes::new().set_modified(now);
        disk::step();
        File::open(&self.network).ok()?.set_times(times).ok()?;
        if modified(&self.network) != Some(now) {
            return None;
        }
        let stamp = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.stamp).ok()?;
        disk::step();
        stamp.set_times(times).ok()
    }

    /// The index is a convenience: if it cannot be changed it is no longer believed, and the operation goes on.
    fn change(&mut self, holder: &Holder, change: impl FnOnce(&mut Vec<IpAddr>)) {
        let changed = self.state != State::Broken
            && self.entry(holder).is_some_and(|mut held| {
                change(&mut held);
                held.len() <= MOST && self.write(holder, &held)
            });
        self.state = if changed { State::Changed } else { State::Broken };
    }

    fn entry(&self, holder: &Holder) -> Option<Vec<IpAddr>> {
        match disk::read_link(&self.path_of(holder)).ok()? {
            None => Some(Vec::new()),
            Some(target) => target.to_str()?.split(',').map(from_canonical_text).collect(),
        }
    }

    fn write(&self, holder: &Holder, held: &[IpAddr]) -> bool {
        let path = self.path_of(holder);
        // Not atomic: the directory has changed already, so that after a crash in between the index is made anew.
        let removed = disk::remove(&path).is_ok();
        let target: Vec<String> = held.iter().map(IpAddr::to_string).collect();
        removed && (held.is_empty() || disk::point(&path, &target.join(",")).is_ok())
    }

    fn path_of(&self, holder: &Holder) -> PathBuf {
        let digest = Sha256::digest(holder.text().as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.entries.join(name)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.symlink_metadata().and_then(|metadata| metadata.modified()).ok()
}
