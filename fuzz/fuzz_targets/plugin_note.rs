//! A file that a plugin left for later.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cni_plugin::fuzzing::note(data));
