//! A network configuration list, and what of it each plugin gets to read (specification, sections 1 and 3).

use super::Attachment;
use crate::Result;
use cni_spec::SpecVersion;
use serde_json::{Map, Value};
use std::path::Path;

/// A network: a conflist as in /etc/cni/net.d.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    list: Value,
    version: SpecVersion,
}

impl Network {
    /// A conflist. `name`, `plugins`, and `cniVersion` or `cniVersions` must be there. Of several versions the newest that
    /// we know is spoken.
    pub fn new(list: Value) -> Result<Self> {
        let several = list["cniVersions"].as_array().into_iter().flatten();
        let stated: Vec<&str> = several.chain([&list["cniVersion"]]).filter_map(Value::as_str).collect();
        if stated.is_empty() || !list["name"].is_string() || !list["plugins"].is_array() {
            return Err(format!("not a conflist: {list}").into());
        }
        let version = stated.iter().filter_map(|text| text.parse().ok()).max();
        // One that nobody knows is for the plugins to refuse.
        let version = version.unwrap_or(SpecVersion::LATEST);
        Ok(Network { list, version })
    }

    /// The same network, whose plugins keep in `directory` what ours keep for themselves in `/var/lib/cni/cni-plugin` by
    /// default. Others do not know these keys.
    #[must_use]
    pub fn with_state_in(mut self, directory: &Path) -> Self {
        for plugin in self.list["plugins"].as_array_mut().into_iter().flatten() {
            if matches!(plugin["type"].as_str(), Some("flannel-rs" | "portmap")) {
                plugin["hostPortsDir"] = directory.join("host-ports").to_str().into();
            }
            let recorded = directory.join("attachments");
            match plugin["type"].as_str() {
                Some("flannel-rs" | "bridge" | "ptp" | "firewall") => {
                    plugin["attachmentsDir"] = recorded.to_str().into()
                }
                Some("flannel") => plugin["delegate"]["attachmentsDir"] = recorded.to_str().into(),
                _ => {}
            }
        }
        self
    }

    /// The same network in another version of the protocol.
    #[must_use]
    pub fn version(&self, version: &str) -> Self {
        let mut list = self.list.clone();
        list["cniVersion"] = version.into();
        Network { version: version.parse().unwrap_or(SpecVersion::LATEST), list }
    }

    /// The same network with nothing but the last plugin of its chain.
    #[must_use]
    pub fn last_plugin(&self) -> Self {
        let mut list = self.list.clone();
        list["plugins"] = self.plugins().next_back().into_iter().cloned().collect();
        Network { list, version: self.version }
    }

    /// `name`
    pub fn name(&self) -> &str {
        self.list["name"].as_str().unwrap_or_default()
    }

    pub(super) fn list(&self) -> &Value {
        &self.list
    }

    pub(super) fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.list["plugins"].as_array().into_iter().flatten()
    }

    /// The version that is spoken.
    pub(super) fn spoken(&self) -> SpecVersion {
        self.version
    }

    /// prevResult is part of DEL, and CHECK exists, since 0.4.0.
    pub(super) fn has_previous_result(&self) -> bool {
        self.version >= SpecVersion::V0_4_0
    }

    /// Whether the plugins may be asked to CHECK.
    pub(super) fn allows_check(&self) -> bool {
        self.has_previous_result() && self.list["disableCheck"] != true
    }

    /// STATUS and GC exist since 1.1.0.
    pub(super) fn has_status(&self) -> bool {
        self.version >= SpecVersion::V1_1_0
    }

    /// Whether the plugins may be asked for GC.
    pub(super) fn allows_gc(&self) -> bool {
        self.has_status() && self.list["disableGC"] != true
    }

    /// The configuration of one plugin as it goes to its standard input.
    pub fn config(&self, plugin: &Value, attachment: Option<&Attachment>, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.list["name"].clone();
        let stated = &self.list["cniVersion"];
        let unknown = stated.as_str().is_some_and(|text| text.parse::<SpecVersion>().is_err());
        config["cniVersion"] = if unknown { stated.clone() } else { self.version.as_str().into() };
        let declared = config.as_object_mut().and_then(|config| {
            // These keys are the runtime's.
            config.retain(|key, _| key != "runtimeConfig" && !key.starts_with("cni.dev/"));
            config.remove("capabilities")
        });
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
