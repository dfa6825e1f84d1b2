//! Who this node is to an etcd with users. The password may be in a file, which is replaced while the daemon runs.

use crate::store::StoreError;
use ipam::regular_file::read_bounded;
use nix::errno::Errno;
use std::path::PathBuf;

/// Longer than any password; etcd hashes no more than the first 72 bytes of one.
const LONGEST: usize = 4096;

/// A user of etcd.
#[derive(Clone)]
pub struct User {
    /// name
    pub name: String,
    /// what proves it
    pub password: Password,
}

/// A password, or where it is.
#[derive(Clone)]
pub enum Password {
    /// itself
    Text(String),
    /// a file with nothing else in it but white space at its end
    File(PathBuf),
}

impl Password {
    /// The password as it is now.
    ///
    /// # Errors
    /// `Invalid`: why the file cannot be read.
    pub(super) fn read(&self) -> Result<String, StoreError> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let read = || -> std::io::Result<String> {
            let (bytes, _) = read_bounded(path, LONGEST)?.ok_or(Errno::ENOENT)?;
            let text = String::from_utf8(bytes).map_err(std::io::Error::other)?;
            Ok(text.trim_end().to_owned())
        };
        match read() {
            Ok(password) if !password.is_empty() => Ok(password),
            Ok(_) => Err(StoreError::Invalid(format!("--etcd-password-file: {} is empty", path.display()))),
            Err(error) => {
                Err(StoreError::Invalid(format!("--etcd-password-file: reading {}: {error}", path.display())))
            }
        }
    }
}
