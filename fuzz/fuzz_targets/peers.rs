//! A network configuration and, behind NULs, the keys and values of leases.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let config = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let parts: Vec<&[u8]> = parts.collect();
    let leases: Vec<(String, &[u8])> = parts
        .chunks(2)
        .filter_map(|parts| {
            let value = parts.get(1).copied()?;
            Some((String::from_utf8_lossy(parts.first()?).into_owned(), value))
        })
        .collect();
    flanneld_rs::fuzzing::peers(&config, &leases);
});
