//! A message of the kernel about a link, an address, a route, a neighbour, a queue or a filter, or a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((flags, payload)) = data.split_first_chunk() else { return };
    kernel::fuzzing::route_message(u16::from_ne_bytes(*flags), payload);
});
