//! The CNI executable: one static binary; the configured `type`, or the name it is called by, selects the plugin. The
//! daemon uses the same library to keep what the plugins have programmed.

mod add;
mod attachment;
mod bandwidth;
mod bridge;
mod check;
mod config;
mod del;
mod gc;
pub mod host_ports;
mod loopback;
mod plan;
mod plugin;
mod pod;
mod portmap;
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
        "host-local" => Some(&ipam::host_local::Plugin),
        "loopback" => Some(&loopback::Loopback),
        "portmap" => Some(&portmap::PortMap),
        "bandwidth" => Some(&bandwidth::Bandwidth),
        _ => None,
    }
}

/// Answers the request in environment and standard input: what the executable does.
pub fn main() -> ExitCode {
    let executable = std::env::args_os().next().unwrap_or_default();
    let executable = Path::new(&executable).file_name().and_then(OsStr::to_str).unwrap_or_default();
    cni_spec::serve(executable, select)
}
