//! The node daemon: leases a pod subnet, programs the overlay, and keeps it so.

pub mod family;
mod json;
pub mod lease;
pub mod network_config;
pub mod store;
