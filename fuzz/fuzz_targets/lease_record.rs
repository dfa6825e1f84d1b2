//! A lease file: what is read and written again stays as it is.
#![no_main]

use flanneld_rs::fuzzing::lease_record;
use libfuzzer_sys::fuzz_target;

const KEY: &str = "10.5.52.0-24";

fuzz_target!(|data: &[u8]| {
    let Some(text) = lease_record(KEY, data) else { return };
    assert_eq!(lease_record(KEY, text.as_bytes()), Some(text));
});
