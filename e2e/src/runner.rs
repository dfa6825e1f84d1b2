//! A small runtime side of CNI: runs the plugins of a conflist in order, hands results on, and keeps the last result of
//! each attachment, as the specification's section 4 asks of a runtime.

use crate::Result;
use kernel::netns::Netns;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A network: a conflist as in /etc/cni/net.d.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    list: Value,
}

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

impl Network {
    /// A conflist. `name`, `cniVersion` and `plugins` must be there.
    pub fn new(list: Value) -> Result<Self> {
        let complete = list["name"].is_string() && list["cniVersion"].is_string() && list["plugins"].is_array();
        if complete { Ok(Network { list }) } else { Err(format!("not a conflist: {list}").into()) }
    }

    /// The same network in another version of the protocol.
    #[must_use]
    pub fn version(&self, version: &str) -> Self {
        let mut list = self.list.clone();
        list["cniVersion"] = version.into();
        Network { list }
    }

    /// The same network with nothing but the last plugin of its chain.
    #[must_use]
    pub fn last_plugin(&self) -> Self {
        let mut list = self.list.clone();
        list["plugins"] = self.plugins().next_back().into_iter().cloned().collect();
        Network { list }
    }

    /// `name`
    pub fn name(&self) -> &str {
        self.list["name"].as_str().unwrap_or_default()
    }

    fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.list["plugins"].as_array().into_iter().flatten()
    }

    /// prevResult is part of DEL, and CHECK exists, since 0.4.0.
    fn since_0_4(&self) -> bool {
        !matches!(self.list["cniVersion"].as_str(), Some("0.1.0" | "0.2.0" | "0.3.0" | "0.3.1") | None)
    }

    /// The configuration of one plugin as it goes to its standard input.
    pub fn config(&self, plugin: &Value, attachment: Option<&Attachment>, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.list["name"].clone();
        config["cniVersion"] = self.list["cniVersion"].clone();
        let declared = config.as_object_mut().and_then(|config| config.remove("capabilities"));
        let wanted = |name: &str| declared.as_ref().is_some_and(|declared| declared[name] == true);
        let given = attachment.map(|attachment| &attachment.capabilities).into_iter().flatten();
        let granted: Map<String, Value> =
            given.filter(|(name, _)| wanted(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
        if !granted.is_empty() {
            config["runtimeConfig"] = granted.into();
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
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
        fs::create_dir_all(&self.cache)?;
        fs::write(self.cached(network, attachment), result.to_string())?;
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
        match fs::remove_file(self.cached(network, attachment)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Asks each plugin whether the attachment is as it should be.
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        let previous = self.previous(network, attachment)?;
        for plugin in network.plugins() {
            let config = network.config(plugin, Some(attachment), previous.as_ref());
            self.finish(&mut to_its_end, "CHECK", &config, &environment(attachment))?;
        }
        Ok(())
    }

    /// Removes every attachment that is not in `valid` (container id, interface name).
    pub fn gc(&self, network: &Network, valid: &[(&str, &str)]) -> Result<()> {
        self.gc_by(&mut to_its_end, network, valid)
    }

    /// As [`Runtime::gc`], with each plugin in the hands of `handling`.
    pub fn gc_by(&self, handling: Handling<'_>, network: &Network, valid: &[(&str, &str)]) -> Result<()> {
        let valid: Vec<Value> = valid.iter().map(|(id, name)| json!({"containerID": id, "ifname": name})).collect();
        for plugin in network.plugins() {
            let mut config = network.config(plugin, None, None);
            config["cni.dev/valid-attachments"] = valid.clone().into();
            self.finish(handling, "GC", &config, &[])?;
        }
        Ok(())
    }

    /// Asks each plugin whether it could serve an ADD now.
    pub fn status(&self, network: &Network) -> Result<()> {
        for plugin in network.plugins() {
            self.finish(&mut to_its_end, "STATUS", &network.config(plugin, None, None), &[])?;
        }
        Ok(())
    }

    /// What the last ADD of this attachment answered.
    fn previous(&self, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
        match fs::read(self.cached(network, attachment)) {
            Ok(text) if network.since_0_4() => Ok(Some(serde_json::from_slice(&text)?)),
            _ => Ok(None),
        }
    }

    fn cached(&self, network: &Network, attachment: &Attachment) -> PathBuf {
        self.cache.join(format!("{}-{}-{}", network.name(), attachment.id, attachment.ifname))
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
