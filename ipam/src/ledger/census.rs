//! Who of those that hold addresses is alive, and what proves that somebody is not. Where there is no proof, there is no
//! death: an address that two pods have is worse than one that nobody has.
//!
//! What proves it: ADD recorded another boot than this one; or a network namespace that is no more; or, of what the
//! reference plugin wrote, which records neither, that the file is older than this boot and that its address is nowhere.
//! A file that names no container, which a crash leaves, needs the last of it only: reservations are written under the
//! lock, which is ours, so that it is not about to become one.

use super::machine::{self, Depth, Survey};
use super::{Content, Holder, Ledger, disk, reservation};
use crate::error::IpamError;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

/// What proves that nobody uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// nobody can tell whose it would be
    Nobodys,
    /// attachments do not outlive the boot
    FormerBoot,
    /// nor do they outlive their namespace
    NoNamespace,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Nobodys => "its file names no container, and nobody uses it",
            Proof::FormerBoot => "it was reserved before the last boot",
            Proof::NoNamespace => "its network namespace is gone",
        })
    }
}

/// An attachment that is proven dead, with all its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// who it was; none for a file that names nobody
    pub holder: Option<Holder>,
    /// its addresses
    pub addresses: Vec<IpAddr>,
    /// how that is known
    pub proof: Proof,
}

/// The holders of some addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// who is dead
    pub dead: Vec<Dead>,
    /// how many of the addresses belong to somebody who is alive
    pub alive: usize,
    /// how many belong to somebody of whom nothing is known
    pub unknown: usize,
    /// what kept us from knowing more
    pub obstacle: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Dead(Proof),
    Unknown,
    Alive,
}

/// The machine as it is now; looked at when it is needed for the first time.
#[derive(Default)]
struct Present {
    boot: Option<String>,
    earliest: Option<SystemTime>,
    names: OnceCell<Result<Survey, String>>,
    addresses: OnceCell<Result<Survey, String>>,
}

impl Present {
    /// Dead by `proof`, unless the machine `shows_life`, or does not show anything.
    fn unless(&self, proof: Proof, shows_life: impl FnOnce(&Survey) -> bool) -> Verdict {
        let (depth, cell) = match proof {
            Proof::NoNamespace => (Depth::Names, &self.names),
            Proof::FormerBoot | Proof::Nobodys => (Depth::Addresses, &self.addresses),
        };
        match cell.get_or_init(|| Survey::take(depth).map_err(|error| error.to_string())) {
            Err(_) => Verdict::Unknown,
            Ok(survey) if shows_life(survey) => Verdict::Alive,
            Ok(_) => Verdict::Dead(proof),
        }
    }

    /// What kept us from seeing.
    fn obstacle(self) -> Option<String> {
        [self.names, self.addresses].into_iter().find_map(|cell| cell.into_inner()?.err())
    }
}

impl Ledger {
    /// Judges those who hold the `wanted` addresses. An attachment lives and dies with all its addresses: one that shows
    /// life speaks for the others.
    ///
    /// # Errors
    /// `Disk`.
    pub fn census(&mut self, wanted: impl Fn(IpAddr) -> bool) -> Result<Census, IpamError> {
        let mut attachments: BTreeMap<(Option<&Holder>, Option<IpAddr>), Vec<IpAddr>> = BTreeMap::new();
        self.read_all()?;
        for (ip, holder) in self.reservations.iter().flatten() {
            // Files that name nobody have nothing to do with each other.
            let itself = holder.is_none().then_some(*ip);
            attachments.entry((holder.as_ref(), itself)).or_default().push(*ip);
        }
        let present = Present { boot: machine::boot_id(), earliest: machine::earliest(), ..Present::default() };
        let mut census = Census::default();
        for ((holder, _), addresses) in attachments {
            let counted = addresses.iter().filter(|ip| wanted(**ip)).count();
            if counted == 0 {
                continue;
            }
            // The sign of life that is strongest; else the doubt, if there is one.
            let verdict = addresses.iter().map(|ip| self.judge(*ip, holder, &present)).max();
            match verdict.unwrap_or(Verdict::Unknown) {
                Verdict::Dead(proof) => census.dead.push(Dead { holder: holder.cloned(), addresses, proof }),
                Verdict::Alive => census.alive += counted,
                Verdict::Unknown => census.unknown += counted,
            }
        }
        census.obstacle = present.obstacle();
        Ok(census)
    }

    fn judge(&self, ip: IpAddr, holder: Option<&Holder>, present: &Present) -> Verdict {
        let file = self.file_of(ip);
        let modified = disk::kind(&file).ok().flatten().and_then(|metadata| metadata.modified().ok());
        let (Some(holder), Some(modified)) = (holder, modified) else {
            return match reservation::read(&file) {
                Ok(Content::Nobodys) => present.unless(Proof::Nobodys, |survey| survey.addresses.contains(&ip)),
                _ => Verdict::Unknown,
            };
        };
        let marked = |survey: &Survey| survey.marks.iter().any(|mark| holder.is_marked(mark));
        let life = self.owners.life_of(holder, ip, modified);
        match life {
            Some(life) if present.boot.as_ref().is_some_and(|boot| life.boot != *boot) => {
                Verdict::Dead(Proof::FormerBoot)
            }
            Some(life) => match life.sandbox {
                None => Verdict::Unknown,
                Some(sandbox) if sandbox.is_in_place() => Verdict::Alive,
                Some(sandbox) => present
                    .unless(Proof::NoNamespace, |survey| survey.namespaces.contains(&sandbox.name) || marked(survey)),
            },
            None if present.earliest.is_some_and(|earliest| modified < earliest) => present
                .unless(Proof::FormerBoot, |survey| {
                    survey.addresses.contains(&ip) || survey.neighbours.contains(&ip) || marked(survey)
                }),
            None => Verdict::Unknown,
        }
    }

    /// Frees the addresses of `dead`.
    ///
    /// # Errors
    /// `Disk`.
    pub fn bury(&mut self, dead: &Dead) -> Result<(), IpamError> {
        dead.addresses.iter().try_for_each(|ip| match dead.proof {
            // Somebody may remember a pod that died a moment ago.
            Proof::NoNamespace => self.release(*ip),
            Proof::FormerBoot | Proof::Nobodys => self.withdraw(*ip),
        })
    }
}
