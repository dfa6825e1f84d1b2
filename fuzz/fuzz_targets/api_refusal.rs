//! An answer of the API server that is no success: a code, a line that says when to come again, and the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((code, rest)) = data.split_first_chunk() else { return };
    let split = rest.iter().position(|byte| *byte == b'\n');
    let (retry, text) = split.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
    flanneld_rs::fuzzing::refusal(u16::from_be_bytes(*code), retry, text);
});
