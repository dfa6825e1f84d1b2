//! Who holds which addresses, without reading the directory: an index that is believed only as long as nobody else has
//! touched the directory, and whose every answer is checked against the reservation. Beside it, what the life of the holder
//! hangs on, which the reservation itself has no room for.
//!
//! After each of our operations the directory and the file `stamp` are given the same time of modification. Whatever
//! happens to the directory afterwards (the reference plugin, an administrator, ourselves up to the point of a crash) gives
//! it another one, and the next operation makes the index anew. We set the time explicitly, from the fine clock, because
//! the kernel's own times move in ticks of some milliseconds, in which a foreign change could hide.

use super::life::Life;
use super::{Holder, disk};
use crate::address::from_canonical_text;
use cni_spec::AttachmentId;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, FileTimes, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most addresses in an entry: what fits a symbolic link (PATH_MAX), with room.
const MOST: usize = 48;

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
        let (named, unnamed) = (self.entry(&named)?, self.entry(&unnamed)?);
        Some(named.held.into_iter().chain(unnamed.held).map(|(ip, _)| ip).collect())
    }

    /// What is known about the life of `holder`, if the reservation of `ip` is the one of which it is known: if it was
    /// written at the time `written`. Another one, by somebody who says nothing about it, may be of another sandbox.
    pub(super) fn life_of(&self, holder: &Holder, ip: IpAddr, written: SystemTime) -> Option<Life> {
        let entry = self.entry(holder)?;
        let same =
            |(held, time): &(IpAddr, Option<u64>)| *held == ip && time.is_some() && *time == nanoseconds(written);
        entry.held.iter().any(same).then_some(entry.life)?
    }

    /// `holder` has got `ip` by a reservation that was `written` then.
    pub(super) fn add(&mut self, holder: &Holder, ip: IpAddr, written: Option<SystemTime>, life: Option<&Life>) {
        self.change(holder, |entry| {
            entry.held.push((ip, life.and(written).and_then(nanoseconds)));
            entry.life = life.cloned();
        });
    }

    pub(super) fn remove(&mut self, holder: &Holder, ip: IpAddr) {
        self.change(holder, |entry| entry.held.retain(|(other, _)| *other != ip));
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

    /// Brings the index up to date. What it tells of lives stays: nobody else knows it.
    pub(super) fn rebuild(&mut self, reservations: &BTreeMap<IpAddr, Option<Holder>>) {
        let mut held: BTreeMap<&Holder, Vec<IpAddr>> = BTreeMap::new();
        for (ip, holder) in reservations {
            if let Some(holder) = holder {
                held.entry(holder).or_default().push(*ip);
            }
        }
        // Where something else is in the way, it begins anew, and knows of no life.
        let written = self.renew(&held) || (disk::remove_directory(&self.entries).is_ok() && self.renew(&held));
        self.state = if written { State::Changed } else { State::Broken };
    }

    fn renew(&self, held: &BTreeMap<&Holder, Vec<IpAddr>>) -> bool {
        let mut present = BTreeSet::new();
        let all = disk::make_directory(&self.entries, 0o700).is_ok()
            && held.iter().all(|(holder, held)| {
                let path = self.path_of(holder);
                present.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
                let mut entry = self.entry(holder).unwrap_or_default();
                let former = entry.text();
                let time = |ip: &IpAddr| entry.held.iter().find(|(other, _)| other == ip).and_then(|(_, time)| *time);
                entry.held = held.iter().map(|ip| (*ip, time(ip))).collect();
                entry.text() == former || self.write(holder, &entry)
            });
        let gone = |name: &str| (!present.contains(name)).then(|| self.entries.join(name));
        all && disk::names(&self.entries, gone).is_ok_and(|gone| gone.iter().all(|path| disk::remove(path).is_ok()))
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
    fn change(&mut self, holder: &Holder, change: impl FnOnce(&mut Entry)) {
        let changed = self.state != State::Broken
            && self.entry(holder).is_some_and(|mut entry| {
                change(&mut entry);
                entry.held.len() <= MOST && self.write(holder, &entry)
            });
        self.state = if changed { State::Changed } else { State::Broken };
    }

    fn entry(&self, holder: &Holder) -> Option<Entry> {
        match disk::read_link(&self.path_of(holder)).ok()? {
            None => Some(Entry::default()),
            Some(target) => Entry::parse(target.to_str()?),
        }
    }

    fn write(&self, holder: &Holder, entry: &Entry) -> bool {
        let path = self.path_of(holder);
        // Not atomic: the directory has changed already, so that after a crash in between the index is made anew.
        let removed = disk::remove(&path).is_ok();
        removed && (entry.held.is_empty() || disk::point(&path, &entry.text()).is_ok())
    }

    fn path_of(&self, holder: &Holder) -> PathBuf {
        let digest = Sha256::digest(holder.text().as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.entries.join(name)
    }
}

/// What the index tells of a holder: `<address>[@<time>],...[;<life>]`.
#[derive(Debug, Default)]
struct Entry {
    /// the addresses, with the time of modification of each reservation that was made in this life, in nanoseconds
    held: Vec<(IpAddr, Option<u64>)>,
    life: Option<Life>,
}

impl Entry {
    fn text(&self) -> String {
        let item = |(ip, time): &(IpAddr, Option<u64>)| match time {
            Some(time) => format!("{ip}@{time:x}"),
            None => ip.to_string(),
        };
        let held: Vec<String> = self.held.iter().map(item).collect();
        let life = self.life.as_ref().map(|life| format!(";{}", life.text())).unwrap_or_default();
        format!("{}{life}", held.join(","))
    }

    fn parse(text: &str) -> Option<Self> {
        let (held, life) = match text.split_once(';') {
            Some((held, life)) => (held, Some(Life::parse(life)?)),
            None => (text, None),
        };
        let item = |item: &str| match item.split_once('@') {
            Some((ip, time)) => Some((from_canonical_text(ip)?, Some(u64::from_str_radix(time, 16).ok()?))),
            None => Some((from_canonical_text(item)?, None)),
        };
        Some(Entry { held: held.split(',').map(item).collect::<Option<_>>()?, life })
    }
}

/// None for times before 1970 and after 2554.
fn nanoseconds(time: SystemTime) -> Option<u64> {
    let since: Duration = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    since.as_nanos().try_into().ok()
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.symlink_metadata().and_then(|metadata| metadata.modified()).ok()
}
