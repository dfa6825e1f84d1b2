//! What is kept on disk for as long as the kernel's own state lives: for one boot and one network namespace. Nothing of it is
//! synced to the platter.

use cni_spec::{CniError, Code};
use ipam::regular_file::read_bounded;
use kernel::netns::{self, Netns};
use kernel::sysctl;
use nix::errno::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// This boot's id.
pub(crate) fn boot() -> Result<String, CniError> {
    sysctl::get("kernel.random.boot_id").map_err(crate::plugin::kernel_error)
}

/// The name of the directory for this boot and the network namespace that the calling thread is in.
pub(crate) fn place(boot: &str) -> Result<String, CniError> {
    let namespace = Netns::current_name().map_err(crate::plugin::kernel_error)?;
    Ok(format!("{boot}.{namespace}"))
}

/// Best effort: they are never read.
pub(crate) fn forget_former_boots(base: &Path, boot: &str) {
    for name in names(base).unwrap_or_default() {
        if !name.starts_with(boot) {
            fs::remove_dir_all(base.join(name)).ok();
        }
    }
}

/// Removes what is kept for network namespaces of this boot that are no more, such as those of nodes that were containers.
/// Best effort, and nothing where it cannot be proven: every process is looked at, if there is anything to remove at all.
///
/// In a container, such as a node of kind, it cannot: a namespace that no process there is in may be that of a node beside it,
/// or be held by a runtime outside. The end of the processes that were in it proves nothing either, as it may have been mounted.
/// What a node there leaves behind with each restart, a small file for each pod that had something, goes with the first ADD after
/// the machine's next boot. (Linux 6.18 opens a namespace by its number also from there, `open_by_handle_at` on nsfs, and so
/// could tell; but it asks for the inode number as well, which older kernels give to another one at once.)
pub(crate) fn forget_dead_namespaces(base: &Path) {
    let Ok(boot) = boot() else { return };
    let Ok(own) = place(&boot) else { return };
    // Listed first: whoever has a directory by now is among those that are found, unless it is dead.
    let mut dead: BTreeSet<String> = names(base).unwrap_or_default().into_iter().collect();
    dead.retain(|name| *name != own && name.starts_with(&format!("{boot}.netns-")));
    if dead.is_empty() || !netns::sees_all_processes() {
        return;
    }
    let survey = netns::for_each_living(&mut |netns| {
        dead.remove(&format!("{boot}.{}", netns.name()?));
        Ok(())
    });
    if survey.is_ok() {
        for name in dead {
            fs::remove_dir_all(base.join(name)).ok();
        }
    }
}

/// The names in a directory; none if it is missing.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, CniError> {
    let list = || fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    match list() {
        Ok(names) => Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("listing", directory)(error)),
    }
}

/// Makes a directory and those above it; one that is there is fine.
pub(crate) fn make_directory(path: &Path) -> Result<(), CniError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("creating directory", path))
}

/// Writes a file that is whole or not there; `draft` is beside it, for nobody else to write.
pub(crate) fn write(path: &Path, draft: &Path, content: &impl Serialize) -> Result<(), CniError> {
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec(content)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        file.write_all(&text)?;
        fs::rename(draft, path)
    };
    write().map_err(|error| {
        fs::remove_file(draft).ok();
        failed("writing", path)(error)
    })
}

/// What such a file holds, if it is there; one of more than `most` bytes is none of ours.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, most: usize) -> Result<Option<T>, CniError> {
    let read = || -> io::Result<Option<T>> {
        let found = read_bounded(path, most)?;
        found.map(|(text, _)| serde_json::from_slice(&text).map_err(io::Error::from)).transpose()
    };
    read().map_err(failed("reading", path))
}

/// True if there was something to remove.
pub(crate) fn remove(path: &Path) -> Result<bool, CniError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        // A name from outside that is too long for a file is no file's.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => Ok(false),
        Err(error) => Err(failed("removing", path)(error)),
    }
}

/// True if the directory is gone.
pub(crate) fn remove_if_empty(directory: &Path) -> Result<bool, CniError> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => Ok(false),
        Err(error) => Err(failed("removing directory", directory)(error)),
    }
}

/// The error of an operation on a file, with what can be done about it.
pub(crate) fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CniError + use<'a> {
    move |error| {
        let remedy = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => " (free space or inodes on this file system)",
            Some(Errno::EROFS) => {
                " (remount it writable, or set dataDir, hostPortsDir and attachmentsDir to writable directories)"
            }
            Some(Errno::EACCES | Errno::EPERM) => " (the plugin must run as root)",
            None => " (is it damaged? remove it, and create its pod anew)",
            Some(_) => "",
        };
        CniError::new(Code::Io, format!("{action} {}: {error}{remedy}", path.display()))
    }
}
