//! A small runtime side of CNI: runs the plugins of a conflist in order, hands results on, and keeps the last result of
//! each attachment, as the specification's sections 3 and 4 ask of a runtime, and where they leave a choice, as libcni does.

mod cache;
mod network;

pub use network::Network;

use crate::Result;
use kernel::netns::Netns;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// One interface in one sandbox, as the runtime names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// container id
    pub id: String,
    /// interface name in the sandbox
    pub ifname: String,
    /// path of the sandbox's network namespace; None if the runtime no longer knows one (DEL)
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`
    pub args: String,
    /// `runtimeConfig` of the plugins that declare the capability
    pub capabilities: Map<String, Value>,
}

/// Runs plugins in a node's network namespace.
#[derive(Debug)]
pub struct Runtime {
    /// `CNI_PATH`
    pub plugins: PathBuf,
    /// where results are kept
    pub cache: PathBuf,
    /// the node
    pub node: Netns,
}

/// What is done with a plugin that was started, until it ended: its standard input still waits for the configuration.
pub type Handling<'a> = &'a mut (dyn FnMut(Child, &[u8]) -> Result<Output> + Send);

/// A plugin that failed: its own words.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `type` of the plugin
    pub plugin: String,
    /// the CNI error code, if it printed an error object
    pub code: Option<u64>,
    /// the error object's message, or all that it printed
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "plugin {} failed with code {:?}: {}", self.plugin, self.code, self.message)
    }
}

impl std::error::Error for Failure {}

impl Attachment {
    /// `eth0` of container `id` in the namespace at `netns`.
    pub fn eth0(id: impl Into<String>, netns: impl Into<PathBuf>) -> Self {
        let netns = Some(netns.into());
        Attachment { id: id.into(), ifname: "eth0".into(), netns, args: String::new(), capabilities: Map::new() }
    }
}

impl Runtime {
    /// Attaches; the result of the last plugin. As the specification asks, a runtime whose ADD failed calls DEL itself:
    /// this does not, so that a test sees what the plugin left.
    pub fn add(&self, network: &Network, attachment: &Attachment) -> Result<Value> {
        self.add_by(&mut to_its_end, network, attachment)
    }

    /// As [`Runtime::add`], with each plugin in the hands of `handling`.
    pub fn add_by(&self, handling: Handling<'_>, network: &Network, attachment: &Attachment) -> Result<Value> {
        let mut previous = None;
        for plugin in network.plugins() {
            let config = network.config(plugin, Some(attachment), previous.as_ref());
            previous = Some(self.finish(handling, "ADD", &config, &environment(attachment))?);
        }
        let result = previous.ok_or("a conflist without plugins")?;
        cache::remember(&self.cache, network, attachment, &result)?;
        Ok(result)
    }

    /// Detaches: every plugin from last to first; the first error ends it.
    pub fn del(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        self.del_by(&mut to_its_end, network, attachment)
    }

    /// As [`Runtime::del`], with each plugin in the hands of `handling`.
    pub fn del_by(&self, handling: Handling<'_>, network: &Network, attachment: &Attachment) -> Result<()> {
        let previous = self.previous(network, attachment)?;
        for plugin in network.plugins().rev() {
            let config = network.config(plugin, Some(attachment), previous.as_ref());
            self.finish(handling, "DEL", &config, &environment(attachment))?;
        }
        cache::forget(&self.cache, network, attachment)
    }

    /// Asks each plugin whether the attachment is as it should be, unless the network has `disableCheck` or a version
    /// without CHECK (before 0.4.0).
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        if !network.allows_check() {
            return Ok(());
        }
        let previous = self.previous(network, attachment)?;
        for plugin in network.plugins() {
            let config = network.config(plugin, Some(attachment), previous.as_ref());
            self.finish(&mut to_its_end, "CHECK", &config, &environment(attachment))?;
        }
        Ok(())
    }

    /// Has the plugins remove every attachment that is not in `valid` (container id, interface name), unless the network has
    /// `disableGC` or a version without GC (before 1.1.0). All are asked, whatever the others answer; the first failure is
    /// told.
    pub fn gc(&self, network: &Network, valid: &[(&str, &str)]) -> Result<()> {
        self.gc_by(&mut to_its_end, network, valid)
    }

    /// As [`Runtime::gc`], with each plugin in the hands of `handling`.
    pub fn gc_by(&self, handling: Handling<'_>, network: &Network, valid: &[(&str, &str)]) -> Result<()> {
        let valid: Vec<Value> = valid.iter().map(|(id, name)| json!({"containerID": id, "ifname": name})).collect();
        let mut outcome = Ok(());
        for plugin in network.plugins().filter(|_| network.allows_gc()) {
            let mut config = network.config(plugin, None, None);
            config["cni.dev/valid-attachments"] = valid.clone().into();
            outcome = outcome.and(self.finish(handling, "GC", &config, &[]).map(drop));
        }
        outcome
    }

    /// As libcni's GC: DEL for whatever the runtime itself remembers and that is not in `valid`, and then [`Runtime::gc`].
    pub fn sweep(&self, network: &Network, valid: &[(&str, &str)]) -> Result<()> {
        let mut outcome = Ok(());
        for known in cache::attachments(&self.cache, network)? {
            if !valid.contains(&(known.id.as_str(), known.ifname.as_str())) {
                outcome = outcome.and(self.del(network, &known));
            }
        }
        outcome.and(self.gc(network, valid))
    }

    /// Asks each plugin whether it could serve an ADD now, unless the network has a version without STATUS (before 1.1.0).
    pub fn status(&self, network: &Network) -> Result<()> {
        for plugin in network.plugins().filter(|_| network.has_status()) {
            self.finish(&mut to_its_end, "STATUS", &network.config(plugin, None, None), &[])?;
        }
        Ok(())
    }

    /// What the last ADD of this attachment answered, if the version lets plugins know.
    fn previous(&self, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
        if network.has_previous_result() { cache::result(&self.cache, network, attachment) } else { Ok(None) }
    }

    /// One call of one plugin; the JSON that it printed, null if it printed nothing.
    fn finish(
        &self,
        handling: Handling<'_>,
        verb: &str,
        config: &Value,
        environment: &[(&str, &str)],
    ) -> Result<Value> {
        let name = config["type"].as_str().ok_or("a plugin without a type")?;
        let output = self.run(handling, &[], verb, config, environment)?;
        let printed = || serde_json::from_slice::<Value>(&output.stdout);
        if output.status.success() {
            return if output.stdout.trim_ascii().is_empty() { Ok(Value::Null) } else { Ok(printed()?) };
        }
        let error = printed().unwrap_or_default();
        let message = error["msg"].as_str().map_or_else(
            || format!("{} {}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
            |text| format!("{text} {}", error["details"].as_str().unwrap_or_default()),
        );
        Err(Failure { plugin: name.into(), code: error["code"].as_u64(), message }.into())
    }

    /// Calls one plugin of the network for an attachment under `wrapper` (a command line that takes another one, such as
    /// strace), whatever becomes of it. Fault tests use this: it judges nothing and keeps nothing.
    pub fn call(&self, wrapper: &[&str], verb: &str, network: &Network, attachment: &Attachment) -> Result<Output> {
        let plugin = network.plugins().next().ok_or("a conflist without plugins")?;
        let config = network.config(plugin, Some(attachment), None);
        self.run(&mut to_its_end, wrapper, verb, &config, &environment(attachment))
    }

    /// Starts the plugin in the node's namespace and waits for its end.
    fn run(
        &self,
        handling: Handling<'_>,
        wrapper: &[&str],
        verb: &str,
        config: &Value,
        environment: &[(&str, &str)],
    ) -> Result<Output> {
        // The plugin inherits the namespace of the thread that starts it; neither another program nor another thread stands
        // between us and it, which matters where its time is measured.
        let input = config.to_string();
        let child = {
            let _inside = self.node.enter()?;
            self.start(wrapper, verb, config, environment)?
        };
        handling(child, input.as_bytes())
    }

    fn start(&self, wrapper: &[&str], verb: &str, config: &Value, environment: &[(&str, &str)]) -> Result<Child> {
        let name = config["type"].as_str().ok_or("a plugin without a type")?;
        let executable = self.plugins.join(name);
        let mut command = match wrapper.split_first() {
            None => Command::new(&executable),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&executable);
                command
            }
        };
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.plugins).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn().map_err(|error| format!("starting {}: {error}", executable.display()))?)
    }
}

/// Nothing befalls the plugin.
fn to_its_end(mut child: Child, config: &[u8]) -> Result<Output> {
    if let Some(mut input) = child.stdin.take() {
        // A plugin that was killed, or that refuses before it reads, closes its end.
        let _ = input.write_all(config);
    }
    Ok(child.wait_with_output()?)
}

/// The variables of a call for an attachment.
fn environment(attachment: &Attachment) -> Vec<(&'static str, &str)> {
    let netns = attachment.netns.as_deref().and_then(Path::to_str).unwrap_or_default();
    vec![
        ("CNI_CONTAINERID", attachment.id.as_str()),
        ("CNI_IFNAME", attachment.ifname.as_str()),
        ("CNI_NETNS", netns),
        ("CNI_ARGS", attachment.args.as_str()),
    ]
}
