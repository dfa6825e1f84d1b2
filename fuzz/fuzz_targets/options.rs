//! A command line of the daemon's, a word on each line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| flanneld_rs::fuzzing::options(text.lines().map(String::from)));
