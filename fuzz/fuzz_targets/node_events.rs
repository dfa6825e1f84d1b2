//! A watch of nodes; the first byte says which families are in use.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((families, text)) = data.split_first() {
        flanneld_rs::fuzzing::node_events(*families, text);
    }
});
