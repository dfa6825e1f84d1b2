//! Delegation (spec section 4): a plugin that needs another one runs it. One that we are ourselves is run in process, any
//! other is found in `CNI_PATH` and executed with the caller's own environment and configuration.

mod run;

use crate::catalogue::{self, Role};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox, SpecVersion};
use run::{LONGEST_ANSWER, Trouble};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a delegate may take for a verb. The reference's `dhcp` tries an ADD for a minute, of the four that the kubelet
/// gives a runtime for the start of a pod (twice `runtimeRequestTimeout`). containerd has one minute for the DELs that undo
/// a start that failed. A runtime that takes 30 s to tell its status is down to the kubelet, and its node with it.
fn limit(verb: &str) -> Duration {
    Duration::from_secs(match verb {
        "ADD" => 90,
        "STATUS" => 10,
        _ => 45,
    })
}

/// Longest file name (NAME_MAX, linux/limits.h).
const LONGEST_NAME: usize = 255;

/// Another plugin that does a part of the work.
pub(crate) enum Delegate {
    /// part of this executable
    BuiltIn(&'static dyn Plugin),
    /// an executable of somebody else
    Executable(Executable),
}

impl Delegate {
    /// The plugin called `name`, which has to be of that role if it is ours. `field` is where the configuration says so.
    ///
    /// The role keeps a configuration from asking for itself for ever.
    ///
    /// # Errors
    /// `InvalidConfig` if `name` cannot be a plugin's name, or is one of ours with another role, or is nowhere in CNI_PATH.
    pub(crate) fn find(field: &str, name: &str, role: Role) -> Result<Self, CniError> {
        let invalid = |text: String| Err(CniError::new(Code::InvalidConfig, format!("{field}: {text}")));
        match catalogue::find(name) {
            Some((found, plugin)) if found == role => return Ok(Delegate::BuiltIn(plugin)),
            Some(_) => return invalid(format!("the plugin {name} does not do that")),
            None => {}
        }
        if name.len() > LONGEST_NAME || name.contains(['/', '\\', '\0']) || matches!(name, "" | "." | "..") {
            return invalid("must be the name of a plugin".into());
        }
        let path = std::env::var_os("CNI_PATH").unwrap_or_default();
        match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| is_executable(path)) {
            Some(path) => Ok(Delegate::Executable(Executable { path, limit })),
            None => {
                let path = path.to_string_lossy();
                invalid(format!("failed to find plugin {name:?} in path [{path}]: install it there"))
            }
        }
    }

    /// The plugin.
    pub(crate) fn plugin(&self) -> &dyn Plugin {
        match self {
            Delegate::BuiltIn(plugin) => *plugin,
            Delegate::Executable(executable) => executable,
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// An executable that speaks CNI.
pub(crate) struct Executable {
    /// where it is
    pub(crate) path: PathBuf,
    /// how long it may take for a verb
    pub(crate) limit: fn(&str) -> Duration,
}

impl Plugin for Executable {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let answer = self.call("ADD", &of_sandbox(sandbox), config)?;
        self.result(&answer, config.version)
    }

    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        let netns = netns.map_or_else(OsString::new, |path| path.as_os_str().to_owned());
        self.call("DEL", &of_attachment(id, netns, args), config).map(drop)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        self.call("CHECK", &of_sandbox(sandbox), config).map(drop)
    }

    fn gc(&self, config: &NetworkConfig, _valid: &[AttachmentId]) -> Result<(), CniError> {
        unless_unknown(self.call("GC", &[], config))
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        unless_unknown(self.call("STATUS", &[], config))
    }
}

type Environment = Vec<(&'static str, OsString)>;

fn of_sandbox(sandbox: &Sandbox) -> Environment {
    of_attachment(&sandbox.id, sandbox.netns.as_os_str().to_owned(), &sandbox.args)
}

/// What the verb is about. Everything else, CNI_PATH above all, is inherited.
fn of_attachment(id: &AttachmentId, netns: OsString, args: &Arguments) -> Environment {
    let args: Vec<String> = args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    vec![
        ("CNI_CONTAINERID", id.container_id.clone().into()),
        ("CNI_IFNAME", id.ifname.clone().into()),
        ("CNI_NETNS", netns),
        ("CNI_ARGS", args.join(";").into()),
    ]
}

/// Plugins older than 1.1.0 know neither GC nor STATUS: there is nothing that they could be asked for.
fn unless_unknown(outcome: Result<Vec<u8>, CniError>) -> Result<(), CniError> {
    match outcome.map_err(|error| (error.code.number(), error)) {
        // Incompatible version; unknown CNI_COMMAND, or a container missed that these verbs do not have.
        Ok(_) | Err((1 | 3 | 4, _)) => Ok(()),
        Err((_, error)) => Err(error),
    }
}

/// The version that a result states, if we know it.
fn stated(answer: &Value) -> Option<SpecVersion> {
    answer.get("cniVersion")?.as_str()?.parse().ok()
}

impl Executable {
    /// What it answered to ADD, in `version` unless it states another one.
    fn result(&self, answer: &[u8], version: SpecVersion) -> Result<AddResult, CniError> {
        let answer: Value = serde_json::from_slice(answer)
            .map_err(|error| self.failure(Code::Decode, format!("its result is not JSON: {error}")))?;
        AddResult::from_json(&answer, stated(&answer).unwrap_or(version))
            .map_err(|error| self.failure(Code::Decode, error.msg))
    }

    /// Runs it and returns what it printed.
    fn call(&self, verb: &str, environment: &[(&str, OsString)], config: &NetworkConfig) -> Result<Vec<u8>, CniError> {
        let input =
            serde_json::to_vec(&config.json).map_err(|error| self.failure(Code::Internal, error.to_string()))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that runs other people's plugins (spec section 4)"
        )]
        let mut command = Command::new(&self.path);
        command.env("CNI_COMMAND", verb).envs(environment.iter().map(|(name, value)| (name, value)));
        let limit = (self.limit)(verb);
        match run::run(&mut command, input, limit) {
            Ok((answer, status)) if status.success() => Ok(answer),
            Ok((answer, status)) => Err(self.refusal(verb, &answer, status)),
            Err(Trouble::Io(what, error)) => Err(self.failure(Code::Io, format!("{what}: {error}"))),
            Err(Trouble::TooLong) => {
                Err(self.failure(Code::Io, format!("it answered with more than {LONGEST_ANSWER} bytes")))
            }
            Err(Trouble::TooLate) => Err(self.failure(
                Code::TryAgain,
                format!(
                    "{verb} took more than {} s, and was ended: see what this plugin waits for, such as a daemon of its own",
                    limit.as_secs()
                ),
            )),
        }
    }

    /// The delegate's own error, with its code, or what became of it.
    fn refusal(&self, verb: &str, answer: &[u8], status: std::process::ExitStatus) -> CniError {
        let error: Option<Value> = serde_json::from_slice(answer).ok();
        let text = |key: &str| error.as_ref()?.get(key)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let code = error.as_ref().and_then(|error| u32::try_from(error.get("code")?.as_u64()?).ok());
        match (code, text("msg")) {
            (Some(code), Some(msg)) => CniError {
                code: Code::Delegated(code),
                msg: format!("{}: {msg}", self.name()),
                details: text("details").unwrap_or_default(),
            },
            _ => self.failure(Code::Internal, format!("{verb} ended with {status} and no error object")),
        }
    }

    fn failure(&self, code: Code, text: String) -> CniError {
        CniError::new(code, format!("{}: {text}", self.path.display()))
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(OsStr::to_str).unwrap_or_default()
    }
}

/// For the fuzz targets: both ways to read an answer.
#[cfg(fuzzing)]
pub(crate) fn read_answer(answer: &[u8], version: SpecVersion) -> (Result<AddResult, CniError>, CniError) {
    use std::os::unix::process::ExitStatusExt;
    let executable = Executable { path: "/opt/cni/bin/other".into(), limit };
    let refusal = executable.refusal("ADD", answer, std::process::ExitStatus::from_raw(1 << 8));
    (executable.result(answer, version), refusal)
}
