//! flock(2) with patience. A network's lock is shared with the reference plugin: it is on the file `lock`.

use crate::error::IpamError;
use nix::sys::stat::{major, minor};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Most of /proc/locks that is read, in bytes.
const MOST_LOCKS: u64 = 1 << 20;

/// The lock, held.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Waits for the lock of `path`, a file that is made if there is none, for at most `patience`.
    ///
    /// # Errors
    /// `Disk`; `Busy`, naming the process that keeps it.
    pub fn acquire(path: &Path, patience: Duration) -> Result<Self, IpamError> {
        let failed = |source| IpamError::Disk { action: "locking", path: path.to_owned(), source };
        let deadline = Instant::now() + patience;
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
            let file = file.map_err(failed)?;
            let wanted = file.metadata().map_err(failed)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(held) = wait(file, left).map_err(failed)? else {
                let holder = holder(&wanted);
                return Err(IpamError::Busy { lock: path.to_owned(), waited: patience, holder });
            };
            // Whoever deletes the directory while we wait leaves us with the lock of a file that nobody else will find.
            match fs::symlink_metadata(path) {
                Ok(current) if (current.dev(), current.ino()) == (wanted.dev(), wanted.ino()) => return Ok(Lock(held)),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for Lock {
    /// Closing alone would not release the lock while a forked child has a duplicate of the descriptor.
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the end of the process releases the lock as well.
        self.0.unlock().ok();
    }
}

/// Locks `file`; none if it takes longer than `patience`.
///
/// flock has no timeout and polling would starve against those who queue in the kernel, so a thread of its own queues
/// for us. If we lose patience it stays behind and lets go of the lock as soon as it gets it.
fn wait(file: File, patience: Duration) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let locked = loop {
            match file.lock() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => break done,
            }
        };
        if let Err(mpsc::SendError((file, _))) = sender.send((file, locked)) {
            file.unlock().ok();
        }
    })?;
    match receiver.recv_timeout(patience) {
        Ok((file, locked)) => locked.map(|()| Some(file)),
        Err(_) => Ok(None),
    }
}

/// The process that holds a lock on `file`, by proc_locks(5).
fn holder(file: &fs::Metadata) -> Option<u32> {
    let mut text = String::new();
    File::open("/proc/locks").ok()?.take(MOST_LOCKS).read_to_string(&mut text).ok()?;
    let wanted = format!("{:02x}:{:02x}:{}", major(file.dev()), minor(file.dev()), file.ino());
    text.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF"; those who wait have "->" after the number.
        let mut words = line.split_ascii_whitespace().skip(1);
        let [kind, _, _, pid, inode] = [words.next()?, words.next()?, words.next()?, words.next()?, words.next()?];
        (kind == "FLOCK" && inode == wanted).then(|| pid.parse().ok().filter(|pid| *pid != 0))?
    })
}
