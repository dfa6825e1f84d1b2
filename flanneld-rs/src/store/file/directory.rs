//! The directory on disk: bounded reads, atomic writes, one lock.

use super::record::{Entry, Record};
use crate::config_file::ConfigFile;
use crate::lease::{MAX_VALUE_BYTES, Malformed};
use crate::store::StoreError;
use ipam::regular_file::read_bounded;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// More files than this in one directory are not looked at: no pool of sane size has as many subnets.
const MAX_ENTRIES: usize = 100_000;
/// How long another daemon may hold the lock. It takes milliseconds; a suspended process holds it for ever.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// How long ago a directory was changed for the last time that can be told from the next one by its stamp.
const SETTLED: Duration = Duration::from_secs(5);

/// By which a file that was written or replaced is told from what it was, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        // The time of change cannot be set back, unlike that of modification.
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Stamp { file: (metadata.dev(), metadata.ino()), size: metadata.size(), changed }
    }

    /// Whether it is so old that another change would have another stamp: clocks of file systems tick slowly, and may be others'.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(since_epoch).is_ok_and(|now| now.saturating_sub(self.changed.0) > SETTLED.as_secs().cast_signed())
    }

    fn of_entry(file: &DirEntry) -> Option<Self> {
        // By the directory, which saves the walk along the path; but what a link says of itself is nothing of the lease.
        let metadata = if file.file_type().ok()?.is_symlink() { fs::metadata(file.path()) } else { file.metadata() };
        metadata.map(|metadata| Stamp::of(&metadata)).ok()
    }
}

/// What is remembered of a lease file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sight {
    /// none: it could not be read
    pub(super) stamp: Option<Stamp>,
    /// end of the lease, as long as it is in force; none: a reservation, or no lease
    pub(super) end: Option<SystemTime>,
}

/// All lease files as they were last seen, by name.
pub(super) type Sights = BTreeMap<Box<str>, Sight>;

/// Where the leases are.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl fmt::Display for Directory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.display())
    }
}

impl Directory {
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let own = Self(path);
        let usable = own.create().and_then(|()| own.lock_file().map(drop));
        usable.map_err(|error| match error {
            StoreError::Unavailable(text) => {
                StoreError::Invalid(format!("{text} (the daemon must be able to write its lease directory)"))
            }
            other => other,
        })?;
        Ok(own)
    }

    /// Where the lease files are.
    pub(super) fn subnets(&self) -> PathBuf {
        self.0.join("subnets")
    }

    /// Makes what is missing of the directories.
    pub(super) fn create(&self) -> Result<(), StoreError> {
        let subnets = self.subnets();
        fs::create_dir_all(&subnets).map_err(|error| failed("making directory", &subnets, &error))
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.0.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        opened.map_err(|error| failed("opening", &path, &error))
    }

    /// Waits for the right to change leases. It ends when the guard is dropped, or with the process.
    pub(super) fn lock(&self) -> Result<Flock<File>, StoreError> {
        self.create()?;
        let mut file = self.lock_file()?;
        let start = Instant::now();
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((file, Errno::EAGAIN)) if start.elapsed() < LOCK_PATIENCE => file,
                Err((_, errno)) => {
                    return Err(StoreError::Unavailable(format!(
                        "locking {}: {errno} (does a suspended daemon hold it? see /proc/locks)",
                        self.0.join("lock").display()
                    )));
                }
            };
            // flock has no form with a time limit.
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Where the network configuration is.
    pub(super) fn config(&self) -> ConfigFile {
        ConfigFile::at(self.0.join("config"))
    }

    /// All lease files, parsed or not.
    pub(super) fn list(&self) -> Result<Vec<Entry>, StoreError> {
        self.changes(&Sights::new()).map(|(entries, _)| entries)
    }

    /// That of the lease directory itself, which is another one after any file was made, renamed or removed in it.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        fs::metadata(self.subnets()).map(|metadata| Stamp::of(&metadata)).ok()
    }

    /// The lease files that are otherwise than `known`, parsed or not, and the names of those that are gone. What has a name
    /// that is no text is no lease.
    pub(super) fn changes(&self, known: &Sights) -> Result<(Vec<Entry>, Vec<String>), StoreError> {
        let subnets = self.subnets();
        let listing = |error: io::Error| failed("listing", &subnets, &error);
        let (mut changed, mut number, mut there) = (Vec::new(), 0, 0);
        for file in fs::read_dir(&subnets).map_err(listing)? {
            let file = file.map_err(listing)?;
            number += 1;
            if number > MAX_ENTRIES {
                return Err(StoreError::Unavailable(format!(
                    "{} has more than {MAX_ENTRIES} files: remove those that are no leases",
                    subnets.display()
                )));
            }
            let Ok(key) = file.file_name().into_string() else { continue };
            let (sight, stamp) = (known.get(key.as_str()), Stamp::of_entry(&file));
            there += usize::from(sight.is_some());
            if stamp.is_none() || stamp != sight.and_then(|sight| sight.stamp) {
                // None: renamed or removed since the directory was read.
                changed.extend(self.read(&key)?);
            }
        }
        if there == known.len() {
            return Ok((changed, Vec::new()));
        }
        let is_gone = |key: &&str| {
            fs::symlink_metadata(subnets.join(key)).is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        Ok((changed, known.keys().map(Box::as_ref).filter(is_gone).map(str::to_owned).collect()))
    }

    /// One lease file. None: there is none. What is no readable file is a malformed entry, which hides no other.
    pub(super) fn read(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.subnets().join(key);
        let entry = |record, modified, stamp| Some(Entry { key: key.to_owned(), record, modified, stamp });
        match read_bounded(&path, MAX_VALUE_BYTES) {
            Ok(None) => Ok(None),
            Ok(Some((text, metadata))) => {
                let modified = metadata.modified().map_err(|error| failed("reading", &path, &error))?;
                Ok(entry(Record::parse(key, &text), modified, Some(Stamp::of(&metadata))))
            }
            Err(error) if is_shortage(&error) => Err(failed("reading", &path, &error)),
            Err(error) => Ok(entry(Err(Malformed(in_words(&error))), SystemTime::now(), None)),
        }
    }

    /// Puts a lease file in place, whole or not at all. The lock must be held.
    pub(super) fn write(&self, key: &str, text: &str) -> Result<(), StoreError> {
        // Beside the lease directory, so that no list or notification ever shows it; one name, since only the holder of
        // the lock writes.
        let (new, path) = (self.0.join(".writing"), self.subnets().join(key));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            // Else a power failure may leave the new name with no content.
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&new, &path)).map_err(|error| failed("writing", &path, &error))
    }

    /// Removes a lease file. The lock must be held.
    pub(super) fn remove(&self, key: &str) -> Result<(), StoreError> {
        let path = self.subnets().join(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removing", &path, &error)),
            _ => Ok(()),
        }
    }
}

/// The machine, not the file, is at fault: the same file may be readable later.
fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EIO | Errno::ESTALE))
}

fn in_words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).to_string())
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{doing} {}: {}", path.display(), in_words(error)))
}
