//! The network configuration on standard input.

use crate::{AddResult, SpecVersion};

/// The part of a network configuration that every plugin shares; the rest stays in `json` for the plugin's own parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `cniVersion` (default 0.1.0)
    pub version: SpecVersion,
    /// `name`, checked against the specification's character set
    pub name: String,
    /// `type`
    pub plugin: String,
    /// `prevResult`, if any
    pub prev_result: Option<AddResult>,
    /// the whole object as received
    pub json: serde_json::Map<String, serde_json::Value>,
}
