//! The CNI executable: one static binary; the configured `type`, or the name it is called by, selects the plugin.

mod add;
mod attachment;
mod bandwidth;
mod bridge;
mod check;
mod config;
mod del;
mod gc;
mod loopback;
mod plan;
mod plugin;
mod pod;
mod ready;
mod status;
mod teardown;

use cni_spec::Plugin;
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// The plugin behind a `type`, or behind a name of the executable. Under its own name, `cni-plugin`, the `type` decides.
fn select(name: &str) -> Option<&'static dyn Plugin> {
    match name {
        "flannel-rs" => Some(&plugin::FLANNEL_RS),
        "bridge" => Some(&plugin::BRIDGE),
        "bandwidth" => Some(&bandwidth::Bandwidth),
        "host-local" => Some(&ipam::host_local::Plugin),
        "loopback" => Some(&loopback::Loopback),
        _ => None,
    }
}

fn main() -> ExitCode {
    let executable = std::env::args_os().next().unwrap_or_default();
    let executable = Path::new(&executable).file_name().and_then(OsStr::to_str).unwrap_or_default();
    cni_spec::serve(executable, select)
}
