//! Files for the CNI plugins: the subnet file, and the conflist that tells the container runtime that the node is ready.

use crate::options::Options;
use ipam::own_file::{left_of, replace};
use ipam::regular_file::read_bounded;
use ipam::subnet_env::SubnetEnv;
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Name of the conflist, the same as flannel's, so that the two never stand side by side.
const CONFLIST: &str = "10-flannel.conflist";

/// Largest conflist that is read, in bytes: what fits into a ConfigMap.
const LONGEST: usize = 1 << 20;

/// The files of this node.
#[derive(Clone, Debug)]
pub struct Files {
    /// path of the subnet file
    pub subnet_file: PathBuf,
    /// directory of the conflist, if it is to be installed
    pub conf_dir: Option<PathBuf>,
    /// file with the conflist that is to be installed instead of our own
    pub conflist: Option<PathBuf>,
}

impl Files {
    /// As the options name them.
    pub fn of(options: &Options) -> Self {
        Files {
            subnet_file: options.subnet_file.clone(),
            conf_dir: options.cni_conf_dir.clone(),
            conflist: options.cni_conf_path.clone(),
        }
    }

    /// Brings the subnet file up to date. Written only when it differs.
    ///
    /// # Errors
    /// The path and why it cannot be written.
    pub fn write_subnet(&self, env: &SubnetEnv) -> Result<(), String> {
        if fs::read_to_string(&self.subnet_file).is_ok_and(|present| present == env.render()) {
            return Ok(());
        }
        env.write(&self.subnet_file).map_err(|error| error.to_string())?;
        tracing::info!("wrote {}", self.subnet_file.display());
        Ok(())
    }

    /// Removes the subnet file: the plugins tell the runtime to come again later.
    ///
    /// # Errors
    /// The path and why it cannot be removed.
    pub fn remove_subnet(&self) -> Result<(), String> {
        match fs::remove_file(&self.subnet_file) {
            Ok(()) => tracing::warn!("removed {}", self.subnet_file.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("removing {}: {error}", self.subnet_file.display())),
        }
        Ok(())
    }

    /// Installs the conflist: the last step, for its presence makes the runtime report the node as ready.
    ///
    /// # Errors
    /// The path and why it cannot be written, or what keeps the given one from being installed; one that was installed
    /// before stays.
    pub fn install_conflist(&self) -> Result<(), String> {
        let Some(dir) = &self.conf_dir else { return Ok(()) };
        let path = dir.join(CONFLIST);
        let text = self.wanted_conflist()?;
        if fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        let written = replace(&path, 0o644, |out| out.write_all(text.as_bytes()));
        written.map_err(|error| format!("writing {}: {error}", path.display()))?;
        tracing::info!("installed {}", path.display());
        Ok(())
    }

    /// What there is of the files that the two functions above write, the conflist first: without it no pod is started any
    /// more. A conflist of somebody else's is not among them.
    pub fn written(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        if let Some(dir) = &self.conf_dir {
            let path = dir.join(CONFLIST);
            let ours = self.wanted_conflist().unwrap_or_else(|_| conflist(&self.subnet_file));
            let is_ours = fs::read_to_string(&path).is_ok_and(|present| present == ours);
            found.extend(left_of(&path).into_iter().filter(|found| *found != path || is_ours));
        }
        found.extend(left_of(&self.subnet_file));
        found
    }

    /// The given conflist to the byte, or ours. It is read anew each time: a mounted ConfigMap changes under way.
    fn wanted_conflist(&self) -> Result<String, String> {
        match &self.conflist {
            Some(path) => given(path).map_err(|error| format!("the conflist {}: {error}", path.display())),
            None => Ok(conflist(&self.subnet_file)),
        }
    }
}

/// A conflist from somebody else: a runtime that met a broken one would report the node as not ready, or take the next file.
fn given(path: &Path) -> Result<String, String> {
    let read = read_bounded(path, LONGEST).map_err(|error| error.to_string())?;
    let (bytes, _) = read.ok_or("it does not exist")?;
    let text = String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text")?;
    let list: Value = serde_json::from_str(&text).map_err(|error| format!("no JSON: {error}"))?;
    let typed = |plugin: &Value| plugin.get("type").is_some_and(Value::is_string);
    let plugins = list.get("plugins").and_then(Value::as_array);
    if list.get("name").is_none_or(|name| !name.is_string()) {
        Err("it has no \"name\"".into())
    } else if plugins.is_none_or(|plugins| plugins.is_empty() || !plugins.iter().all(typed)) {
        Err("its \"plugins\" are no list of objects with a \"type\"".into())
    } else {
        Ok(text)
    }
}

/// The network as the container runtime reads it: named `cbr0` as flannel's, so that addresses are recorded in the same
/// place whichever of the two runs. A runtime that knows `cniVersions` (1.1.0) takes the newest, and asks for STATUS and GC;
/// an older one reads `cniVersion` only.
fn conflist(subnet_file: &Path) -> String {
    let capabilities = serde_json::json!({ "bandwidth": true, "portMappings": true });
    let mut plugin = serde_json::json!({ "capabilities": capabilities, "type": "flannel-rs" });
    if subnet_file != Path::new(ipam::subnet_env::DEFAULT_PATH) {
        plugin["subnetFile"] = subnet_file.display().to_string().into();
    }
    let conflist = serde_json::json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "cbr0",
        "plugins": [plugin],
    });
    format!("{conflist:#}\n")
}
