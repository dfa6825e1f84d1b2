//! The cluster's network configuration and, behind a NUL, the one that is to follow it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (now, wanted) = text.split_once('\0').unwrap_or((text, text));
    flanneld_rs::fuzzing::network_config(now, wanted);
});
