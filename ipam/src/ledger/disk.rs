//! File operations of the ledger, each with an error that names the file. Every change goes through here, one system call
//! at a time, so that tests can stop between any two.

use crate::error::IpamError;
use nix::fcntl::OFlag;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> IpamError + use<'a> {
    move |source| IpamError::Disk { action, path: path.to_owned(), source }
}

/// Not being there is an answer, not a failure.
fn unless_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The metadata of whatever is at `path` itself.
pub(super) fn kind(path: &Path) -> Result<Option<Metadata>, IpamError> {
    unless_absent(fs::symlink_metadata(path)).map_err(failed("looking at", path))
}

pub(super) fn exists(path: &Path) -> Result<bool, IpamError> {
    kind(path).map(|metadata| metadata.is_some())
}

/// At most `limit` + 1 bytes: a reader sees by the length that there is more.
pub(super) fn read(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, IpamError> {
    let read = |file: File| {
        let mut content = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut content).map(|_| content)
    };
    // Without O_NONBLOCK a fifo in the way would hold us up for ever.
    let open = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    unless_absent(open.and_then(read)).map_err(failed("reading", path))
}

/// Where a symbolic link points to; none if there is none.
pub(super) fn read_link(path: &Path) -> Result<Option<PathBuf>, IpamError> {
    unless_absent(fs::read_link(path)).map_err(failed("reading", path))
}

/// What `select` makes of the names in a directory, which need not exist.
pub(super) fn names<T: Ord>(directory: &Path, select: impl Fn(&str) -> Option<T>) -> Result<BTreeSet<T>, IpamError> {
    let list = || -> io::Result<BTreeSet<T>> {
        let mut found = BTreeSet::new();
        for entry in unless_absent(fs::read_dir(directory))?.into_iter().flatten() {
            found.extend(entry?.file_name().to_str().and_then(&select));
        }
        Ok(found)
    };
    list().map_err(failed("listing", directory))
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), IpamError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("creating directory", path))
}

/// Makes a file that must not exist yet, and tells its time of modification if the file system keeps one. If it cannot be
/// written completely it is removed again.
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> Result<Option<SystemTime>, IpamError> {
    step();
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed("creating", path))?;
    step();
    file.write_all(content).map_err(|source| {
        fs::remove_file(path).ok();
        failed("writing", path)(source)
    })?;
    Ok(file.metadata().and_then(|metadata| metadata.modified()).ok())
}

/// Replaces the content in place, not atomically. Truncating the file first would give its block away and take another; ext4
/// even begins to write one that was replaced so (`auto_da_alloc`).
pub(super) fn overwrite(path: &Path, content: &[u8], mode: u32) -> Result<(), IpamError> {
    step();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .open(path)
        .map_err(failed("creating", path))?;
    step();
    let length = content.len() as u64;
    let write = |file: &mut File| {
        file.write_all(content)?;
        step();
        if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
    };
    write(&mut file).map_err(failed("writing", path))
}

pub(super) fn append(path: &Path, content: &[u8], mode: u32) -> Result<(), IpamError> {
    step();
    let mut file =
        OpenOptions::new().append(true).create(true).mode(mode).open(path).map_err(failed("creating", path))?;
    file.write_all(content).map_err(failed("writing", path))
}

pub(super) fn link(from: &Path, to: &Path) -> Result<(), IpamError> {
    step();
    fs::hard_link(from, to).map_err(failed("creating", to))
}

pub(super) fn point(link: &Path, target: &str) -> Result<(), IpamError> {
    step();
    symlink(target, link).map_err(failed("creating", link))
}

/// True if there was something to remove.
pub(super) fn remove(path: &Path) -> Result<bool, IpamError> {
    step();
    unless_absent(fs::remove_file(path)).map(|done| done.is_some()).map_err(failed("removing", path))
}

pub(super) fn remove_directory(path: &Path) -> Result<(), IpamError> {
    step();
    unless_absent(fs::remove_dir_all(path)).map(drop).map_err(failed("removing", path))
}

/// A point at which the process may die.
pub(super) fn step() {
    #[cfg(test)]
    super::tests::crash::step();
}
