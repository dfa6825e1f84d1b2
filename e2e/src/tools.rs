//! Where the executables under test are.

use crate::Result;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static HELPER: OnceLock<PathBuf> = OnceLock::new();

/// Names the executable that knows the commands of [`crate::inside`]. Tests need this, because their own executable is
/// the test runner; the demo and the benchmark are their own helpers. The first call decides.
pub fn set_helper(path: impl Into<PathBuf>) {
    let _ = HELPER.set(path.into());
}

/// The executable that knows the commands of [`crate::inside`].
pub fn helper() -> Result<PathBuf> {
    match HELPER.get() {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()?),
    }
}

/// The CNI executable: `$CNI_PLUGIN`, or `dist/cni-plugin`.
pub fn cni_plugin() -> Result<PathBuf> {
    product("CNI_PLUGIN", "cni-plugin")
}

/// The daemon: `$FLANNELD`, or `dist/flanneld-rs`.
pub fn flanneld() -> Result<PathBuf> {
    product("FLANNELD", "flanneld-rs")
}

/// Go flannel's daemon, which ours is tried beside: `$GO_FLANNELD`, else `flanneld` in `$PATH`; None where there is none.
pub fn go_flanneld() -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os("GO_FLANNELD") {
        let path = PathBuf::from(path);
        let found = path.canonicalize().map_err(|error| format!("GO_FLANNELD={}: {error}", path.display()))?;
        return Ok(Some(found));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::split_paths(&path).map(|directory| directory.join("flanneld")).find(|candidate| candidate.is_file()))
}

fn product(variable: &str, name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => dist().join(name),
    };
    let path = path.canonicalize().map_err(|error| {
        format!("{}: {error} (run `make build`, or name the executable by {variable}=<path>)", path.display())
    })?;
    Ok(path)
}

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist")
}

/// An executable of a Debian package that only tests and benchmarks use; the error names the package.
pub fn from_package(path: &str, package: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: apt-get install {package} (or `make test`, which does it)", path.display()).into())
    }
}

/// The names of the CNI executable.
pub const PLUGINS: [&str; 11] = [
    "flannel-rs",
    "flannel",
    "bridge",
    "ptp",
    "host-local",
    "static",
    "loopback",
    "tuning",
    "firewall",
    "portmap",
    "bandwidth",
];

/// A directory for `CNI_PATH` in which the one CNI executable is found under each of its names.
pub fn plugin_directory(directory: &Path) -> Result<PathBuf> {
    let executable = cni_plugin()?;
    std::fs::create_dir_all(directory)?;
    for name in PLUGINS {
        let link = directory.join(name);
        match std::os::unix::fs::symlink(&executable, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(format!("linking {}: {error}", link.display()).into());
            }
            _ => {}
        }
    }
    Ok(directory.to_owned())
}

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Arguments for a machine ([`crate::inside`]) on which no plugins are to be found but those in `plugins`.
pub fn without_others(plugins: &Path) -> &'static [&'static str] {
    if plugins.starts_with(REFERENCE) { &[] } else { &["--tmpfs", REFERENCE] }
}
