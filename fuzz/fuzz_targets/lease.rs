//! A lease of a store: the key on the first line, then the value. What is read is written and read as the same.
#![no_main]

use flanneld_rs::lease::{Announcement, Lease, key as key_of, parse_key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let split = data.iter().position(|byte| *byte == b'\n');
    let (key, value) = split.map_or((&[][..], data), |at| (&data[..at], &data[at + 1..]));
    let Ok(lease) = Lease::parse(&String::from_utf8_lossy(key), value) else { return };
    let told = lease.announcement.to_json();
    assert_eq!(Announcement::parse(told.as_bytes()).expect("what we write can be read"), lease.announcement);
    let key = key_of(&lease.subnets);
    assert_eq!(parse_key(&key).expect("what we write can be read"), lease.subnets);
});
