//! A packet that comes to a node with the backend udp; the first byte says of which family it is to be.
#![no_main]

use flanneld_rs::family::Family;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((family, packet)) = data.split_first() {
        flanneld_rs::fuzzing::packet(Family::ALL[usize::from(family % 2)], packet);
    }
});
