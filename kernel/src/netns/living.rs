//! Which network namespaces are alive. One lives as long as a thread is in it, a descriptor is open on it, or it is mounted
//! somewhere (namespaces(7)); /proc shows all three.

use super::Netns;
use crate::{Error, Result};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Calls `visit` with every network namespace that is alive, once each. A caller who then misses one may be sure that
/// nobody uses it: whatever could not be looked into is an error. (What a process that denies even root a look at its
/// descriptors keeps open by these alone is the exception, and what comes to life in the meantime.)
///
/// # Errors
/// EACCES or EPERM for a thread or a namespace that the caller may not look into, as in a user namespace of its own; EBUSY
/// for one that is mounted where nothing can be opened; what `visit` returns.
pub fn for_each_living(visit: &mut dyn FnMut(&Netns) -> Result<()>) -> Result<()> {
    let mut search = Search {
        visit,
        visited: BTreeSet::new(),
        inhabited: BTreeSet::new(),
        tables: BTreeSet::new(),
        read: BTreeSet::new(),
        closed: BTreeMap::new(),
        hidden: BTreeMap::new(),
    };
    for process in numbered(Path::new("/proc")).map_err(|error| Error::io("listing processes", &error))? {
        search.process(&process)?;
    }
    search.conclude()
}

/// Whether this process sees all others, which it does in the first namespace of processes only: what lives in a container
/// sees nothing of the namespaces outside of it.
pub fn sees_all_processes() -> bool {
    // PROC_PID_INIT_INO (linux/proc_ns.h)
    const FIRST: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST)
}

struct Search<'a> {
    visit: &'a mut dyn FnMut(&Netns) -> Result<()>,
    /// inode numbers of the namespaces that were visited
    visited: BTreeSet<u64>,
    /// those of them that threads were seen in
    inhabited: BTreeSet<u64>,
    /// inode numbers of `net/dev` of those threads: each namespace has one of its own, which everybody may ask for
    tables: BTreeSet<u64>,
    /// mount namespaces, each with a root directory, whose mounts were read
    read: BTreeSet<(PathBuf, PathBuf)>,
    /// threads that deny a look, by the inode number of their `net/dev`
    closed: BTreeMap<u64, PathBuf>,
    /// namespaces that are mounted but could not be opened there, and the list that says so
    hidden: BTreeMap<u64, PathBuf>,
}

impl Search<'_> {
    fn process(&mut self, process: &Path) -> Result<()> {
        for thread in numbered(&process.join("task")).unwrap_or_default() {
            self.thread(&thread)?;
        }
        for descriptor in numbered(&process.join("fd")).unwrap_or_default() {
            if let Some(inode) = fs::read_link(&descriptor).ok().and_then(|target| inode_in(target.to_str()?)) {
                self.look_at(&descriptor, inode)?;
            }
        }
        self.mounts(process)
    }

    fn thread(&mut self, thread: &Path) -> Result<()> {
        let path = thread.join("ns/net");
        match fs::read_link(&path) {
            Ok(target) => {
                let inode = target.to_str().and_then(inode_in);
                if let Some(inode) = inode.filter(|inode| self.inhabited.insert(*inode)) {
                    self.tables.extend(table_of(thread));
                    self.look_at(&path, inode)?;
                }
                Ok(())
            }
            // It ended.
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.closed.extend(table_of(thread).map(|table| (table, thread.to_owned())));
                Ok(())
            }
            Err(error) => Err(Error::io(format!("reading {}", path.display()), &error)),
        }
    }

    fn mounts(&mut self, process: &Path) -> Result<()> {
        // A process that was given another root sees the mounts below it only.
        let seen_from = fs::read_link(process.join("ns/mnt")).ok().zip(fs::read_link(process.join("root")).ok());
        if seen_from.as_ref().is_some_and(|place| self.read.contains(place)) {
            return Ok(());
        }
        let list = process.join("mountinfo");
        // A process that ended has no mounts, and another one shows them.
        let Ok(text) = fs::read(&list) else { return Ok(()) };
        self.read.extend(seen_from);
        for line in String::from_utf8_lossy(&text).lines() {
            // proc_pid_mountinfo(5): "36 35 0:4 net:[4026532211] /run/netns/pod rw - nsfs nsfs rw"
            let mut words = line.split(' ').skip(3);
            let Some((inode, place)) = words.next().and_then(inode_in).zip(words.next()) else { continue };
            if !self.visited.contains(&inode) {
                let path = process.join("root").join(unescape(place).trim_start_matches('/'));
                let looked = self.look_at(&path, inode);
                if !self.visited.contains(&inode) {
                    // It may be mounted elsewhere as well, where it can be opened.
                    self.hidden.insert(inode, list.clone());
                } else {
                    looked?;
                }
            }
        }
        Ok(())
    }

    /// Visits the namespace at `path`, unless it is gone.
    fn look_at(&mut self, path: &Path, inode: u64) -> Result<()> {
        if self.visited.contains(&inode) {
            return Ok(());
        }
        match Netns::open(path) {
            Ok(netns) if self.visited.insert(netns.id().1) => (self.visit)(&netns),
            Ok(_) => Ok(()),
            // Closed or ended, or something else by now.
            Err(Error { errno: Errno::ENOENT | Errno::ESRCH | Errno::EINVAL, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What could not be looked into must have been seen some other way, or be gone by now.
    fn conclude(self) -> Result<()> {
        for (inode, list) in self.hidden.iter().filter(|(inode, _)| !self.visited.contains(inode)) {
            let still_there = fs::read(list).is_ok_and(|text| {
                let text = String::from_utf8_lossy(&text);
                text.lines().any(|line| line.split(' ').nth(3).and_then(inode_in) == Some(*inode))
            });
            if still_there {
                let operation = format!("opening network namespace net:[{inode}], mounted as {} tells", list.display());
                return Err(Error::new(operation, Errno::EBUSY).because("another mount may cover it"));
            }
        }
        for (table, thread) in self.closed.iter().filter(|(table, _)| !self.tables.contains(table)) {
            if table_of(thread) == Some(*table) {
                return Err(Error::new(format!("reading {}/ns/net", thread.display()), Errno::EACCES));
            }
        }
        Ok(())
    }
}

/// The entries of `directory` that are numbers.
fn numbered(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.filter_map(std::result::Result::ok);
    let is_number = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(entries.filter(is_number).map(|entry| entry.path()).collect())
}

/// The number in `net:[4026531840]`.
fn inode_in(text: &str) -> Option<u64> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// A path of the list of mounts, in which spaces, tabs, newlines and backslashes stand as three octal digits.
fn unescape(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, meant)| text.replace(code, meant))
}

fn table_of(thread: &Path) -> Option<u64> {
    fs::metadata(thread.join("net/dev")).ok().map(|metadata| metadata.ino())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}
