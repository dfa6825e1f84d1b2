//! From the runtime's environment and standard input to a plugin's verb, and its answer back.

use crate::environment::Call;
use crate::field::excerpt;
use crate::request::read_config;
use crate::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, Request, Sandbox, SpecVersion};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
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

/// What one run of the executable leaves to be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// for the runtime: a result, the versions, an error, or nothing
    pub stdout: Vec<u8>,
    /// for people
    pub stderr: String,
    /// exit status: 0 or 1
    pub status: u8,
}

/// Reads the request from the process environment and standard input, lets `select` find the plugin, carries the request
/// out and prints the answer on standard output; see [`answer`].
pub fn serve<'a>(executable: &str, select: impl Fn(&str) -> Option<&'a dyn Plugin>) -> ExitCode {
    let answer = answer(executable, |name| std::env::var_os(name), std::io::stdin().lock(), select);
    // Diagnostics are worth a try only.
    let _ = std::io::stderr().write_all(answer.stderr.as_bytes());
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&answer.stdout).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(answer.status),
        Err(error) => {
            // The runtime is gone or deaf; if it lives it sees the exit status, and follows a failed ADD with DEL.
            let _ = writeln!(std::io::stderr(), "printing the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The answer of the executable called `executable` (a path or a file name) to the request in `env` and `stdin`.
///
/// The plugin is the one that `select` knows by the name of the executable, or else by the configuration's `type`. The
/// name comes first because a delegate is run with the configuration of its caller (spec section 4): called by the
/// `bridge` plugin, `host-local` reads `"type": "bridge"`.
///
/// Without `CNI_COMMAND`, a person has called: they get a line about the plugin on standard error and status 0, as from
/// the reference plugins. If ADD succeeds but its result cannot be told in the version asked for, it is undone by DEL.
pub fn answer<'a>(
    executable: &str,
    env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
    select: impl Fn(&str) -> Option<&'a dyn Plugin>,
) -> Answer {
    let executable = Path::new(executable).file_name().and_then(OsStr::to_str).unwrap_or_default();
    if env("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        return Answer { stderr: about(executable), ..Answer::default() };
    }
    // Until the configuration has been read, errors are told in the newest version.
    let mut version = SpecVersion::LATEST;
    match run(executable, env, stdin, select, &mut version) {
        Ok(stdout) => Answer { stdout: stdout.into_bytes(), ..Answer::default() },
        Err(error) => Answer { stdout: error.to_text(version).into_bytes(), status: 1, ..Answer::default() },
    }
}

fn run<'a>(
    executable: &str,
    env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read,
    select: impl Fn(&str) -> Option<&'a dyn Plugin>,
    version: &mut SpecVersion,
) -> Result<String, CniError> {
    let Call::Network(verb) = Call::read(env)? else { return Ok(versions()) };
    let mut config = read_config(stdin)?;
    *version = config.version;
    if config.plugin.is_empty() {
        config.plugin = executable.to_owned();
    }
    let plugin = select(executable).or_else(|| select(&config.plugin)).ok_or_else(|| {
        config.field("type").invalid(format!(
            "there is no plugin {} in {}",
            excerpt(&config.plugin),
            excerpt(executable)
        ))
    })?;
    carry_out(plugin, Request::complete(verb, config)?)
}

fn carry_out(plugin: &dyn Plugin, request: Request) -> Result<String, CniError> {
    match request {
        Request::Add(sandbox, config) => {
            let result = plugin.add(&sandbox, &config)?;
            result.to_text(config.version).inspect_err(|_| {
                // The runtime hears of the failure that made this necessary, not of one to undo it.
                let _ = plugin.del(&sandbox.id, Some(&sandbox.netns), &sandbox.args, &config);
            })
        }
        Request::Del { id, netns, args, config } => silent(plugin.del(&id, netns.as_deref(), &args, &config)),
        Request::Check(sandbox, config) => silent(plugin.check(&sandbox, &config)),
        Request::Gc(config, valid) => silent(plugin.gc(&config, &valid)),
        Request::Status(config) => silent(plugin.status(&config)),
        Request::Version => Ok(versions()),
    }
}

fn silent(done: Result<(), CniError>) -> Result<String, CniError> {
    done.map(|()| String::new())
}

/// The answer to VERSION: on one line, as the reference prints it. (All of it is plain text that needs no escapes.)
fn versions() -> String {
    let supported = SpecVersion::ALL.map(SpecVersion::as_str).join("\",\"");
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[\"{supported}\"]}}\n", SpecVersion::LATEST)
}

fn about(executable: &str) -> String {
    let supported = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
    let package = env!("CARGO_PKG_VERSION");
    format!("CNI plugin {executable} {package}; CNI protocol versions supported: {supported}\n")
}
