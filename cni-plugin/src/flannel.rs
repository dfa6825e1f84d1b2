//! `type: flannel`, the meta plugin of flannel's own conflist: it completes a delegate's configuration with what the daemon
//! wrote into the subnet file, and hands every verb on.

pub(crate) mod render;
mod scratch;

use crate::attachments::{Attached, Attachments, Part};
use crate::catalogue::Role;
use crate::config::subnet_env;
use crate::delegate::Delegate;
use crate::status::unavailable;
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use ipam::subnet_env::{DEFAULT_PATH, SubnetEnv};
use scratch::Scratch;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// `type: flannel`
pub(crate) struct Flannel;

impl Plugin for Flannel {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let rendered = render::delegate(config, Some(&env(config)?))?;
        let (delegate, rendered) = prepared(config, rendered)?;
        // Before anything is made, for a plugin that knows no other way to remove it.
        let scratch = Scratch::of(config)?;
        let mut notes = rendered.json.clone();
        if let Delegate::BuiltIn(_) = delegate {
            // The reference's bridge insists on removing the iptables chain of its masquerade, and fails for want of ours.
            notes.insert("ipMasq".into(), false.into());
        }
        scratch.save(&sandbox.id, &notes)?;
        let made = delegate.plugin().add(sandbox, &rendered);
        match (&made, &delegate) {
            (Err(_), _) => drop(scratch.remove(&sandbox.id)),
            (Ok(_), Delegate::BuiltIn(_)) => {}
            // Other people's plugins tell nobody whose attachment it is.
            (Ok(result), _) => {
                let addresses = result.ips.iter().map(|ip| ip.address.ip()).collect();
                let attached = Attached::new(&config.name, sandbox, addresses);
                Attachments::of(config)?.publish(Part::Interface, &attached)?;
            }
        }
        made
    }

    /// Works from what ADD wrote down, and without it from the configuration.
    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        let scratch = Scratch::of(config)?;
        let rendered = match scratch.load(id) {
            Some(rendered) => rendered,
            None => render::delegate(config, env(config).ok().as_ref())?,
        };
        let (delegate, rendered) = prepared(config, rendered)?;
        delegate.plugin().del(id, netns, args, &rendered)?;
        if !matches!(delegate, Delegate::BuiltIn(_)) {
            Attachments::of(config)?.withdraw(Part::Interface, &config.name, id, &[])?;
        }
        scratch.remove(id)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let rendered = render::delegate(config, Some(&env(config)?))?;
        let (delegate, rendered) = prepared(config, rendered)?;
        delegate.plugin().check(sandbox, &rendered)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        let rendered = render::delegate(config, env(config).ok().as_ref())?;
        let (delegate, rendered) = prepared(config, rendered)?;
        let mut collected = delegate.plugin().gc(&rendered, valid);
        if !matches!(delegate, Delegate::BuiltIn(_)) {
            collected = collected.and(Attachments::of(config)?.forget_others(&config.name, valid));
        }
        collected.and(Scratch::of(config)?.gc(valid))
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        let rendered = render::delegate(config, Some(&env(config).map_err(unavailable)?)).map_err(unavailable)?;
        let (delegate, rendered) = prepared(config, rendered).map_err(unavailable)?;
        delegate.plugin().status(&rendered).map_err(unavailable)
    }
}

/// What the daemon leased for this node.
fn env(config: &NetworkConfig) -> Result<SubnetEnv, CniError> {
    let path = config.field("subnetFile").string()?.map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from);
    subnet_env(&path)
}

/// The delegate, and its configuration with what the runtime inserted into ours.
fn prepared(config: &NetworkConfig, mut rendered: Map<String, Value>) -> Result<(Delegate, NetworkConfig), CniError> {
    rendered.insert("cniVersion".into(), config.version.as_str().into());
    for key in ["prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"] {
        rendered.extend(config.json.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let text = |key: &str| rendered.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, plugin) = (text("name"), text("type"));
    let delegate = Delegate::find("delegate.type", &plugin, Role::Interface)?;
    if plugin == "flannel" {
        return Err(CniError::new(Code::InvalidConfig, "delegate.type: flannel cannot delegate to itself"));
    }
    let version = config.version;
    Ok((delegate, NetworkConfig { version, name, plugin, prev_result: config.prev_result.clone(), json: rendered }))
}
