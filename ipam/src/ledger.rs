//! Reservations on disk, in the format of the reference plugin `host-local` and under its lock, so that both can take
//! turns on one directory.
//!
//! | path | what | whose |
//! |---|---|---|
//! | `<dataDir>/<network>/` 0755 | the network's directory | shared |
//! | `.../lock` | flock(2), exclusive, for each operation | shared |
//! | `.../<address>` 0600 | `<container id>\r\n<ifname>`, no newline at the end | shared |
//! | `.../last_reserved_ip.<i>` | where round robin goes on in range set i: a hint | shared |
//! | `<dataDir>/.index/<network>/` 0700 | what follows; may be deleted at any time | ours |
//! | `.../owners/<hash>` | symbolic link, hash of (container id, ifname) -> addresses, boot, network namespace | ours |
//! | `.../stamp` | its time of modification says for which state of the directory `owners` holds | ours |
//! | `.../released` | addresses released within the last 60 s | ours |
//! | `.../reservation` | a reservation about to be linked to its name | ours |
//!
//! What is ours lies outside of the network's directory because the reference reads every file in there at each
//! operation, and on the same file system so that link(2) and rename(2) work. A network name cannot begin with a dot, so
//! `.index` is nobody's network.
//!
//! Nothing is synced to the platter: an attachment does not outlive the boot, a crash of a process does not lose what it
//! wrote into the page cache, and after a power failure an empty file is what we must cope with anyway.

mod census;
mod disk;
mod life;
pub mod lock;
mod machine;
mod owners;
mod released;
mod reservation;
#[cfg(test)]
mod tests;

use crate::address::from_canonical_text;
use crate::error::IpamError;
use crate::pool;
use crate::range::RangeSet;
pub use census::{Census, Dead, Proof};
use cni_spec::AttachmentId;
pub use life::Life;
use lock::Lock;
use owners::Owners;
use released::Released;
use reservation::Content;
pub use reservation::Holder;
#[cfg(fuzzing)]
pub(crate) use reservation::parse as parse_reservation;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a released address rests while others are free.
pub const REST: Duration = Duration::from_secs(60);

/// How long an operation waits for the lock of its network.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many addresses are probed one by one before the directory's names are listed, which costs as much as some
/// hundreds of probes in a directory of thousands.
const PROBES: usize = 256;

/// Longest network name: it becomes a file name (NAME_MAX).
const LONGEST_NAME: usize = 255;

/// Where the reservations of one network are, and how to wait and tell the time there.
#[derive(Clone, Debug)]
pub struct Place {
    directory: PathBuf,
    side: PathBuf,
    patience: Duration,
    clock: fn() -> Duration,
}

impl Place {
    /// The ledger of `network` under `data_dir`.
    ///
    /// # Errors
    /// `Name` for a network that is not a safe file name.
    pub fn new(data_dir: &Path, network: &str) -> Result<Self, IpamError> {
        let safe = !network.is_empty()
            && network.len() <= LONGEST_NAME
            && !network.starts_with('.')
            && !network.chars().any(|character| character == '/' || character.is_control());
        if !safe {
            return Err(IpamError::Name(format!(
                "network name {network:?} cannot name a directory: use letters, digits, '_', '.', '-', beginning with a \
                 letter or digit"
            )));
        }
        Ok(Place {
            directory: data_dir.join(network),
            side: data_dir.join(".index").join(network),
            patience: PATIENCE,
            clock: machine::since_boot,
        })
    }

    fn draft(&self) -> PathBuf {
        self.side.join("reservation")
    }

    fn last_reserved(&self, set: usize) -> PathBuf {
        self.directory.join(format!("last_reserved_ip.{set}"))
    }
}

/// A network's reservations, locked until [`Ledger::close`] (or until dropped, after a failure).
#[derive(Debug)]
pub struct Ledger {
    place: Place,
    owners: Owners,
    /// all reservations, once it was necessary to read them
    reservations: Option<BTreeMap<IpAddr, Option<Holder>>>,
    names: Option<BTreeSet<IpAddr>>,
    probes: usize,
    #[cfg(test)]
    scans: usize,
    /// held until the last of this is gone
    _lock: Lock,
}

impl Ledger {
    /// Locks the ledger of `place`, making its directories where they are missing.
    ///
    /// # Errors
    /// `Disk`; `Busy` if another process keeps the lock for 10 s.
    pub fn open(place: &Place) -> Result<Self, IpamError> {
        disk::make_directory(&place.directory, 0o755)?;
        disk::make_directory(&place.side, 0o700)?;
        let lock = Lock::acquire(&place.directory.join("lock"), place.patience)?;
        // A draft left by a crash may be the same inode as a reservation: it is never written into.
        disk::remove(&place.draft()).ok();
        let mut ledger = Ledger {
            place: place.clone(),
            owners: Owners::open(&place.directory, &place.side),
            reservations: None,
            names: None,
            probes: 0,
            #[cfg(test)]
            scans: 0,
            _lock: lock,
        };
        if !ledger.owners.is_current() {
            ledger.scan()?;
        }
        Ok(ledger)
    }

    /// As [`Ledger::open`], but none if the network has no directory, which then is not made.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_existing(place: &Place) -> Result<Option<Self>, IpamError> {
        match disk::exists(&place.directory)? {
            true => Ledger::open(place).map(Some),
            false => Ok(None),
        }
    }

    /// The addresses that `id` holds, in ascending order; reservations of old plugins, which name no interface, included.
    ///
    /// # Errors
    /// `Disk`.
    pub fn held_by(&mut self, id: &AttachmentId) -> Result<Vec<IpAddr>, IpamError> {
        if self.reservations.is_none() {
            if let Some(found) = self.look_up(id)? {
                return Ok(found);
            }
            self.owners.distrust();
            self.scan()?;
        }
        let mine = |(ip, holder): (&IpAddr, &Option<Holder>)| {
            holder.as_ref().is_some_and(|holder| holder.is(id)).then_some(*ip)
        };
        Ok(self.reservations.iter().flatten().filter_map(mine).collect())
    }

    /// What the index says, if it is sound and the reservations it names agree. They do not if somebody wrote into one of
    /// them, which leaves no trace on the directory.
    fn look_up(&self, id: &AttachmentId) -> Result<Option<Vec<IpAddr>>, IpamError> {
        let Some(mut found) = self.owners.of(id) else { return Ok(None) };
        for ip in &found {
            let holder = reservation::read(&self.file_of(*ip))?.holder();
            if !holder.is_some_and(|holder| holder.is(id)) {
                return Ok(None);
            }
        }
        found.sort();
        found.dedup();
        Ok(Some(found))
    }

    /// Every reservation with its holder; none where that cannot be read.
    ///
    /// # Errors
    /// `Disk`.
    pub fn reservations(&mut self) -> Result<&BTreeMap<IpAddr, Option<Holder>>, IpamError> {
        self.read_all()?;
        Ok(self.reservations.get_or_insert_default())
    }

    fn read_all(&mut self) -> Result<(), IpamError> {
        if self.reservations.is_some() { Ok(()) } else { self.scan() }
    }

    /// The address that `set`, the `index`-th range set, hands out next. None: all are reserved.
    ///
    /// # Errors
    /// `Disk`.
    pub fn next(&mut self, set: &RangeSet, index: usize) -> Result<Option<IpAddr>, IpamError> {
        let last = disk::read(&self.place.last_reserved(index), 64)
            .ok()
            .flatten()
            .and_then(|text| String::from_utf8(text).ok()?.trim().parse::<IpAddr>().ok());
        let released = Released::load(&self.place.side, (self.place.clock)());
        pool::choose(set, last, |ip| self.is_taken(ip), |ip| released.when(ip))
    }

    /// To whom `ip` is given already, in words; none if nobody has it.
    ///
    /// # Errors
    /// `Disk`.
    pub fn holder_of(&self, ip: IpAddr) -> Result<Option<String>, IpamError> {
        Ok(match reservation::read(&self.file_of(ip))? {
            Content::Absent | Content::Nobodys => None,
            Content::Foreign => Some("something that is not a file".into()),
            Content::Of(holder) => Some(holder.to_string()),
        })
    }

    /// Whether there is a reservation of `ip`, even one that names nobody: see [`Ledger::census`].
    ///
    /// # Errors
    /// `Disk`.
    pub fn is_taken(&mut self, ip: IpAddr) -> Result<bool, IpamError> {
        if let Some(reservations) = &self.reservations {
            return Ok(reservations.contains_key(&ip));
        }
        if let Some(names) = &self.names {
            return Ok(names.contains(&ip));
        }
        if self.probes < PROBES {
            self.probes += 1;
            return disk::exists(&self.file_of(ip));
        }
        let names = self.list()?;
        let taken = names.contains(&ip);
        self.names = Some(names);
        Ok(taken)
    }

    /// Records that `id` has `ip` from the `set`-th range set, and what its `life` hangs on. False: it is taken already.
    ///
    /// # Errors
    /// `Disk`, with nothing reserved; `Name` for an id that cannot be recorded.
    pub fn reserve(
        &mut self,
        id: &AttachmentId,
        ip: IpAddr,
        set: usize,
        life: Option<&Life>,
    ) -> Result<bool, IpamError> {
        let holder = Holder::of(id)?;
        let draft = self.place.draft();
        let written = disk::create(&draft, holder.text().as_bytes(), 0o600)?;
        let placed = match disk::link(&draft, &self.file_of(ip)) {
            Err(IpamError::Disk { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        };
        // Whatever came of it. If it fails, the next operation repairs it.
        disk::remove(&draft).ok();
        let placed = placed?;
        if placed {
            disk::overwrite(&self.place.last_reserved(set), ip.to_string().as_bytes(), 0o600).ok();
            self.owners.add(&holder, ip, written, life);
            if let Some(reservations) = &mut self.reservations {
                reservations.insert(ip, Some(holder));
            }
        }
        Ok(placed)
    }

    /// Releases `ip`, which lets it rest for [`REST`].
    ///
    /// # Errors
    /// `Disk`.
    pub fn release(&mut self, ip: IpAddr) -> Result<(), IpamError> {
        // A release must succeed on a full disk, or the disk stays full: without its time the address merely does not rest.
        released::note(&self.place.side, ip, (self.place.clock)()).ok();
        self.withdraw(ip)
    }

    /// Takes a reservation back that nobody has seen.
    ///
    /// # Errors
    /// `Disk`.
    pub fn withdraw(&mut self, ip: IpAddr) -> Result<(), IpamError> {
        let file = self.file_of(ip);
        let holder = match &self.reservations {
            Some(reservations) => reservations.get(&ip).cloned().flatten(),
            None => reservation::read(&file)?.holder(),
        };
        disk::remove(&file)?;
        match holder {
            Some(holder) => self.owners.remove(&holder, ip),
            None => self.owners.directory_changed(),
        }
        if let Some(reservations) = &mut self.reservations {
            reservations.remove(&ip);
        }
        Ok(())
    }

    /// Ends the operation: the index is declared valid for the directory as it is now, and the lock released.
    pub fn close(mut self) {
        self.owners.stamp();
    }

    /// The directory shared with the reference plugin.
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    fn file_of(&self, ip: IpAddr) -> PathBuf {
        self.place.directory.join(ip.to_string())
    }

    /// The addresses that have a file.
    fn list(&self) -> Result<BTreeSet<IpAddr>, IpamError> {
        disk::names(&self.place.directory, from_canonical_text)
    }

    /// Reads the whole directory, and makes the index anew if it is not to be believed.
    fn scan(&mut self) -> Result<(), IpamError> {
        #[cfg(test)]
        {
            self.scans += 1;
        }
        let mut reservations = BTreeMap::new();
        for ip in self.list()? {
            // One unreadable file is no reason to refuse service: its address is taken, and that is all we know.
            let holder = reservation::read(&self.file_of(ip)).ok().and_then(Content::holder);
            reservations.insert(ip, holder);
        }
        if !self.owners.is_current() {
            self.owners.rebuild(&reservations);
        }
        self.names = None;
        self.reservations = Some(reservations);
        Ok(())
    }
}
