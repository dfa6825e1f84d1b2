//! The `host-local` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_spec::serve("host-local", |_| Some(&ipam::host_local::Plugin))
}
