//! A table of somebody else's, and a pod's packet on its way through it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kernel::fuzzing::foreign_table(data));
