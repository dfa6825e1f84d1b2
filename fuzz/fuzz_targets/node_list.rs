//! A list of nodes, in parts of as many bytes as the first one says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((size, text)) = data.split_first() {
        flanneld_rs::fuzzing::node_list(usize::from(*size), text);
    }
});
