//! The content of a reservation file, which other plugins and crashes write: what is read is written and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((holder, text)) = ipam::fuzzing::reservation(data) else { return };
    assert_eq!(ipam::fuzzing::reservation(text.as_bytes()).map(|(holder, _)| holder), Some(holder));
});
