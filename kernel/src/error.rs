//! Errors of kernel operations.

use nix::errno::Errno;
use std::fmt;

/// A kernel operation that failed: what was attempted on which object, the errno, the kernel's own words, and what the
/// operator can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// "adding route 10.5.2.0/24 via 10.5.2.0 dev flannel.1"
    pub operation: String,
    /// the errno
    pub errno: Errno,
    /// extended acknowledgement text of the kernel, or empty
    pub reason: String,
}

/// Result of a kernel operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of `operation` with `errno`.
    pub fn new(operation: impl Into<String>, errno: Errno) -> Self {
        Error { operation: operation.into(), errno, reason: String::new() }
    }

    /// The same failure with a reason in words.
    pub fn because(self, reason: impl Into<String>) -> Self {
        Error { reason: reason.into(), ..self }
    }

    /// A failure of `operation` from an I/O error.
    pub fn io(operation: impl Into<String>, error: &std::io::Error) -> Self {
        Error::new(operation, Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))
    }

    /// What the operator can do about it, where the errno tells.
    pub fn remedy(&self) -> Option<&'static str> {
        match self.errno {
            Errno::EPERM | Errno::EACCES => Some("run as root or with CAP_NET_ADMIN"),
            Errno::EOPNOTSUPP => Some("the running kernel lacks this feature; load the module or use another kernel"),
            Errno::ENETUNREACH => Some("is the device up and its address set?"),
            Errno::EMFILE | Errno::ENFILE => Some("raise the limit of open files"),
            Errno::ENOBUFS | Errno::ENOMEM => Some("the kernel is short of memory"),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} ({})", self.operation, self.errno, self.errno.desc())?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        if let Some(remedy) = self.remedy() {
            write!(f, " [{remedy}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
