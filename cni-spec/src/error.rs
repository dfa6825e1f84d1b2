//! Errors as the runtime reads them.

/// Well-known error codes of the CNI specification ("Error" section), and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Code {
    /// 1: the version asked for is not supported
    IncompatibleVersion = 1,
    /// 2: a field of the configuration is not supported
    UnsupportedField = 2,
    /// 3: the container is unknown or does not exist
    UnknownContainer = 3,
    /// 4: a needed environment variable is missing or invalid
    InvalidEnvironment = 4,
    /// 5: input or output failed
    Io = 5,
    /// 6: the content could not be decoded
    Decode = 6,
    /// 7: the network configuration is invalid
    InvalidConfig = 7,
    /// 11: try again later
    TryAgain = 11,
    /// 50: the plugin is not available, ADD would fail
    NotAvailable = 50,
    /// 51: not available, and existing containers may have limited connectivity
    LimitedConnectivity = 51,
    /// 100: the kernel refused
    Kernel = 100,
    /// 101: address allocation failed
    Ipam = 101,
    /// 102: CHECK found a difference
    CheckFailed = 102,
    /// 999: anything else
    Internal = 999,
}

/// A failure as it is printed: code, message (object, errno, remedy), details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// what kind
    pub code: Code,
    /// one line: what failed, on which object, with the errno, and what to do
    pub msg: String,
    /// longer text, or empty
    pub details: String,
}
