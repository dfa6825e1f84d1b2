//! flanneld-rs

fn main() {}
