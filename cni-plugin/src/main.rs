//! The executable: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugin::main()
}
