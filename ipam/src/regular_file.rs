//! Reading files that others have written, or may have put in the place of ours: regular ones only, and never more of one than
//! it may have.

use nix::fcntl::OFlag;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A regular file's bytes and metadata, from before they were read. None: it does not exist.
///
/// # Errors
/// `FileTooLarge` if it has more than `most` bytes.
pub fn read_bounded(path: &Path, most: usize) -> io::Result<Option<(Vec<u8>, Metadata)>> {
    // Opening a FIFO that somebody put there must not wait for its writer, nor a terminal become ours.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
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
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(Some((bytes, metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_file_and_no_longer_than_it_may_be_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let (file, fifo) = (directory.path().join("file"), directory.path().join("fifo"));
        assert!(read_bounded(&file, 4).unwrap().is_none());
        std::fs::write(&file, "1234").unwrap();
        assert_eq!(read_bounded(&file, 4).unwrap().unwrap().0, b"1234");
        assert_eq!(read_bounded(&file, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [&fifo, directory.path()] {
            assert!(read_bounded(other, 4).unwrap_err().to_string().contains("no regular file"));
        }
    }
}
