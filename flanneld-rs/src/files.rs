//! Files for the CNI plugins: the subnet file, and the conflist that tells the container runtime that the node is ready.

use ipam::subnet_env::SubnetEnv;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the conflist, the same as flannel's, so that the two never stand side by side.
const CONFLIST: &str = "10-flannel.conflist";

/// The files of this node.
#[derive(Clone, Debug)]
pub struct Files {
    /// path of the subnet file
    pub subnet_file: PathBuf,
    /// directory of the conflist, if it is to be installed
    pub conf_dir: Option<PathBuf>,
}

impl Files {
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

    /// Installs the conflist: the last step, for its presence makes the runtime report the node as ready.
    ///
    /// # Errors
    /// The path and why it cannot be written.
    pub fn install_conflist(&self) -> Result<(), String> {
        let Some(dir) = &self.conf_dir else { return Ok(()) };
        let path = dir.join(CONFLIST);
        let text = conflist(&self.subnet_file);
        if fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        replace(dir, &path, &text).map_err(|error| format!("writing {}: {error}", path.display()))?;
        tracing::info!("installed {}", path.display());
        Ok(())
    }

    /// Removes what the two functions above wrote; a conflist of somebody else's stays.
    ///
    /// # Errors
    /// The path and why it cannot be removed.
    pub fn remove(&self) -> Result<(), String> {
        if let Some(dir) = &self.conf_dir {
            let path = dir.join(CONFLIST);
            if fs::read_to_string(&path).is_ok_and(|present| present == conflist(&self.subnet_file)) {
                remove(&path)?;
            }
        }
        remove(&self.subnet_file)
    }
}

fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {error}", path.display()))
        }
        _ => Ok(()),
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

/// Replaces a file in one step, so that no reader ever sees half of it. The temporary name does not end in `.conflist`:
/// runtimes read every file that does.
fn replace(dir: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(".{CONFLIST}.{}", std::process::id()));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    // The file outlives a reboot, and an empty one would leave the node without a network.
    file.sync_all()?;
    fs::rename(&temporary, path)
}
