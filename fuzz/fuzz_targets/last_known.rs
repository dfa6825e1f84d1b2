//! What a daemon wrote down of its store: what is read is written and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flanneld_rs::fuzzing::last_known(data));
