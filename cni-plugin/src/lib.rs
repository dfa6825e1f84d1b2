//! The CNI executable: one static binary; the configured `type`, or the name it is called by, selects the plugin. The
//! daemon uses the same library to keep what the plugins have programmed.

mod add;
mod allocation;
mod attachment;
pub mod attachments;
mod bandwidth;
mod boot_state;
mod bridge;
mod catalogue;
mod check;
mod config;
mod del;
mod delegate;
mod firewall;
mod flannel;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gc;
mod guard;
pub mod host_ports;
mod install;
mod leftovers;
mod loopback;
mod masquerade;
mod notes;
mod plan;
mod plugin;
mod pod;
mod portmap;
mod ptp;
mod ready;
pub mod restore;
mod shared_table;
mod status;
mod teardown;
mod tuning;

use cni_spec::Plugin;
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// The plugin behind a `type`, or behind a name of the executable. Under its own name, `cni-plugin`, the `type` decides.
fn select(name: &str) -> Option<&'static dyn Plugin> {
    catalogue::find(name).map(|(_, plugin)| plugin)
}

/// Answers the request in environment and standard input, or carries out the command in the arguments: what the executable
/// does.
pub fn main() -> ExitCode {
    // Runtimes call plugins without arguments, and people with them.
    if let Some(done) = install::command(std::env::args_os().skip(1)) {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => {
                eprintln!("{text}");
                ExitCode::FAILURE
            }
        };
    }
    let executable = std::env::args_os().next().unwrap_or_default();
    let executable = Path::new(&executable).file_name().and_then(OsStr::to_str).unwrap_or_default();
    cni_spec::serve(executable, select)
}
