//! Errors as the runtime reads them.

use crate::SpecVersion;
use serde::Serialize;
use std::fmt;

/// Well-known error codes of the CNI specification ("Error" section), and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// 1: the version asked for is not supported
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported
    UnsupportedField,
    /// 3: the container is unknown or does not exist
    UnknownContainer,
    /// 4: a needed environment variable is missing or invalid
    InvalidEnvironment,
    /// 5: input or output failed
    Io,
    /// 6: the content could not be decoded
    Decode,
    /// 7: the network configuration is invalid
    InvalidConfig,
    /// 8: the network namespace is invalid (not in the specification's table, but in its reference library)
    InvalidNetns,
    /// 11: try again later
    TryAgain,
    /// 50: the plugin is not available, ADD would fail
    NotAvailable,
    /// 51: not available, and existing containers may have limited connectivity
    LimitedConnectivity,
    /// 100: the kernel refused
    Kernel,
    /// 101: address allocation failed
    Ipam,
    /// 102: CHECK found a difference
    CheckFailed,
    /// 103: a port of the host belongs to somebody else
    PortTaken,
    /// 999: anything else
    Internal,
    /// what a plugin that we ran for its caller answered
    Delegated(u32),
}

impl Code {
    /// The number that is printed as `code`.
    pub fn number(self) -> u32 {
        match self {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::InvalidConfig => 7,
            Code::InvalidNetns => 8,
            Code::TryAgain => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            Code::Kernel => 100,
            Code::Ipam => 101,
            Code::CheckFailed => 102,
            Code::PortTaken => 103,
            Code::Internal => 999,
            Code::Delegated(number) => number,
        }
    }
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

/// The printed form (spec section 5, "Error"), keys in the specification's order.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// An error of kind `code` with a one-line message.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        CniError { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with a longer text.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON text for standard output, in the protocol `version` that is in use.
    pub fn to_text(&self, version: SpecVersion) -> String {
        crate::pretty::text(&Printed { version, code: self.code.number(), msg: &self.msg, details: &self.details })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for CniError {}
