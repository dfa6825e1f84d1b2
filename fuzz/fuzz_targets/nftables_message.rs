//! A message of the kernel about an nftables object.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kernel::fuzzing::nftables_message(data));
