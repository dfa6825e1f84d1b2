//! That a daemon runs: it holds its state directory by a shared lock, which ends with the process however that ends.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Tells others so, as long as the value lives. Best effort: a daemon without a state directory runs as well.
pub(crate) fn tell(state_dir: &Path) -> Option<Flock<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).ok()?;
    Flock::lock(File::open(state_dir).ok()?, FlockArg::LockSharedNonblock).ok()
}

/// Whether one runs with this state directory.
pub(crate) fn is_told(state_dir: &Path) -> bool {
    let lock = File::open(state_dir).ok().map(|directory| Flock::lock(directory, FlockArg::LockExclusiveNonblock));
    matches!(lock, Some(Err((_, nix::Error::EWOULDBLOCK))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_runs_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(!is_told(&state));
        let daemons = [tell(&state).unwrap(), tell(&state).unwrap()];
        assert!(is_told(&state));
        drop(daemons);
        assert!(!is_told(&state));
        assert!(tell(Path::new("/proc/no-such")).is_none());
    }
}
