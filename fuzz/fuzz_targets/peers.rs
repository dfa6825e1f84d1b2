//! A network configuration and, behind NULs, the keys and values of leases.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let config = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let parts: Vec<&[u8]> = parts.collect();
    let leases: Vec<(String, &[u8])> =
        parts.chunks_exact(2).map(|pair| (String::from_utf8_lossy(pair[0]).into_owned(), pair[1])).collect();
    flanneld_rs::fuzzing::peers(&config, &leases);
});
