//! One temporary directory per run, which a killed predecessor cannot leave behind for long.

use crate::Result;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PREFIX: &str = "flannel-rs-e2e.";

/// A temporary directory that is removed with this value.
#[derive(Debug)]
pub struct WorkDir {
    directory: TempDir,
}

impl WorkDir {
    /// Makes a directory in the usual place for temporary files that carries our process number, and removes those of
    /// processes that are gone.
    pub fn new() -> Result<Self> {
        WorkDir::within(&std::env::temp_dir())
    }

    /// The same in another place.
    pub fn within(place: &Path) -> Result<Self> {
        sweep(place);
        let prefix = format!("{PREFIX}{}.", std::process::id());
        Ok(WorkDir { directory: tempfile::Builder::new().prefix(&prefix).tempdir_in(place)? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes the directory `name` in it.
    pub fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// Best effort: a directory that cannot be removed is left for the next run.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('.').next());
        let gone = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if owner.is_some_and(gone) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
