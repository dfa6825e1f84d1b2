//! Reading files that others have written: regular ones only, and never more of one than it may have.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A regular file's bytes and metadata, from before they were read. None: it does not exist.
pub(crate) fn read_bounded(path: &Path, most: usize) -> io::Result<Option<(Vec<u8>, Metadata)>> {
    // Opening a FIFO that somebody put there must not wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(Some((bytes, metadata)))
}
