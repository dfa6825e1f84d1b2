//! ipam

fn main() {}
