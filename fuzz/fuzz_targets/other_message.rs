//! A message of the kernel about connections or WireGuard.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kernel::fuzzing::other_message(data));
