//! `make bench`: figures beside the reference plugins.

use e2e::bench::run;
use std::path::Path;
use std::process::ExitCode;

const ABOUT: &str = "Measures the CNI executable, address allocation, the kernel's programming and the daemon, and prints a \
    table in Markdown. Needs root, and Debian's containernetworking-plugins and iproute2 to compare with.";

fn main() -> ExitCode {
    // In memory: to make a file on a disk costs microseconds or a millisecond, as the file system happens to be.
    e2e::entry::main(ABOUT, Path::new("/dev/shm"), run)
}
