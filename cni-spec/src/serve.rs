//! From the runtime's environment and standard input to a plugin's verb, and its answer back.

use crate::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, Sandbox};
use std::path::Path;
use std::process::ExitCode;

/// A plugin: one function per verb.
pub trait Plugin {
    /// ADD
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError>;
    /// DEL
    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError>;
    /// CHECK; `config.prev_result` is present
    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError>;
    /// GC
    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError>;
    /// STATUS
    fn status(&self, config: &NetworkConfig) -> Result<(), CniError>;
}

/// Reads the request from the process environment and standard input, lets `select` find the plugin by the configured
/// `type` (or the name of the executable), carries it out and prints the answer on standard output.
pub fn serve<'a>(_executable: &str, _select: impl Fn(&str) -> Option<&'a dyn Plugin>) -> ExitCode {
    todo!()
}
