//! A small synchronous netlink socket and the kernel nouns spoken over it.

pub mod socket;
