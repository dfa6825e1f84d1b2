//! Specification versions.

use crate::{CniError, Code};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification that we speak, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.1.0
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK
    V0_4_0,
    /// 1.0.0: no more `version` in `ips`
    V1_0_0,
    /// 1.1.0: GC, STATUS, interface mtu and socketPath, route mtu, advmss, priority, table, scope
    V1_1_0,
}

impl SpecVersion {
    /// Every version, oldest first: what VERSION answers.
    pub const ALL: [SpecVersion; 7] = [
        SpecVersion::V0_1_0,
        SpecVersion::V0_2_0,
        SpecVersion::V0_3_0,
        SpecVersion::V0_3_1,
        SpecVersion::V0_4_0,
        SpecVersion::V1_0_0,
        SpecVersion::V1_1_0,
    ];

    /// The newest version: spoken where the configuration has not been read yet.
    pub const LATEST: SpecVersion = SpecVersion::V1_1_0;

    /// A configuration without `cniVersion` is of the first version, which knew no such key.
    pub const UNSTATED: SpecVersion = SpecVersion::V0_1_0;

    /// The version as text, `1.1.0`.
    pub fn as_str(self) -> &'static str {
        match self {
            SpecVersion::V0_1_0 => "0.1.0",
            SpecVersion::V0_2_0 => "0.2.0",
            SpecVersion::V0_3_0 => "0.3.0",
            SpecVersion::V0_3_1 => "0.3.1",
            SpecVersion::V0_4_0 => "0.4.0",
            SpecVersion::V1_0_0 => "1.0.0",
            SpecVersion::V1_1_0 => "1.1.0",
        }
    }

    /// Whether runtimes of this version may call CHECK (since 0.4.0).
    pub fn has_check(self) -> bool {
        self >= SpecVersion::V0_4_0
    }

    /// Whether runtimes of this version may call GC (since 1.1.0).
    pub fn has_gc(self) -> bool {
        self >= SpecVersion::V1_1_0
    }

    /// Whether runtimes of this version may call STATUS (since 1.1.0).
    pub fn has_status(self) -> bool {
        self >= SpecVersion::V1_1_0
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SpecVersion {
    type Err = CniError;

    /// Exactly one of the released versions: a number in between was never specified, so its formats are unknown.
    fn from_str(text: &str) -> Result<Self, CniError> {
        SpecVersion::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let supported = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {} is not supported", crate::field::excerpt(text)),
            )
            .with_details(format!("set cniVersion to one of {supported}"))
        })
    }
}

impl Serialize for SpecVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
