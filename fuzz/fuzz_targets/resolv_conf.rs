//! The content of a resolv.conf.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = ipam::fuzzing::resolv_conf(&String::from_utf8_lossy(data));
});
