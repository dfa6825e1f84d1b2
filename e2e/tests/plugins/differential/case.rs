//! The conflists and what is around them.

use crate::bench::Whose;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A conflist, and the node and the pods that it is for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// the plugins; the text `DIR` in them stands for the directory of a run's state
    plugins: Vec<Value>,
    /// what takes their place with the reference, which has no executable of a name
    reference: Option<Vec<Value>>,
    /// versions of the protocol
    #[serde(default = "usual")]
    versions: Vec<String>,
    /// how many pods are attached
    #[serde(default = "one")]
    pub(super) pods: usize,
    /// `CNI_ARGS` of the first pod
    #[serde(default)]
    pub(super) args: String,
    /// capability arguments of the first pod
    #[serde(default)]
    pub(super) capabilities: Map<String, Value>,
    /// arguments of `ip` that prepare the node
    #[serde(default)]
    pub(super) before: Vec<String>,
    /// files in the directory of a run's state
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
}

fn usual() -> Vec<String> {
    vec!["1.0.0".into()]
}

fn one() -> usize {
    1
}

/// A conflist in one version.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// group, name, and the version where there are several
    pub(super) name: String,
    pub(super) version: String,
    pub(super) case: Case,
}

/// All conflists in `directory`, by group and name.
pub(super) fn read_all(directory: &Path) -> Vec<Run> {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut runs = Vec::new();
    for path in paths {
        let group = path.file_stem().unwrap().to_str().unwrap();
        let cases: BTreeMap<String, Case> = serde_json::from_slice(&fs::read(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (name, case) in cases {
            for version in &case.versions {
                let suffix = if case.versions.len() > 1 { format!(", {version}") } else { String::new() };
                let name = format!("{group}: {name}{suffix}");
                runs.push(Run { name, version: version.clone(), case: case.clone() });
            }
        }
    }
    runs
}

impl Case {
    /// The plugins for one side, with their state in `directory`.
    pub(super) fn plugins(&self, whose: Whose, directory: &Path) -> Value {
        let ours = (whose == Whose::Ours).then_some(&self.plugins);
        let mut plugins = Value::from(ours.or(self.reference.as_ref()).unwrap_or(&self.plugins).clone());
        fill(&mut plugins, directory.to_str().unwrap());
        plugins
    }

    /// Everything that the conflist and its pods say, such as a MAC that is asked for.
    pub(super) fn spoken(&self) -> String {
        let plugins = Value::from(self.plugins.clone());
        let capabilities = Value::from(self.capabilities.clone());
        format!("{plugins} {capabilities} {} {}", self.args, self.before.join(" ")).to_lowercase()
    }
}

/// Puts `directory` in the place of `DIR`, and where a plugin would keep its state elsewhere.
fn fill(value: &mut Value, directory: &str) {
    match value {
        Value::String(text) => *text = text.replace("DIR", directory),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, directory)),
        Value::Object(object) => {
            let kind = object.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            let defaults: &[(&str, &str)] = match kind.as_str() {
                "host-local" => &[("dataDir", "networks")],
                "tuning" => &[("dataDir", "tuning")],
                "flannel" => &[("dataDir", "flannel"), ("subnetFile", "subnet.env")],
                _ => &[],
            };
            for (key, name) in defaults {
                object.entry(*key).or_insert(format!("{directory}/{name}").into());
            }
            object.values_mut().for_each(|item| fill(item, directory));
        }
        _ => {}
    }
}
