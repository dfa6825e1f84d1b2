//! The node daemon: leases a pod subnet, programs the overlay, and keeps it so.

pub mod backend;
pub mod checksum;
pub mod config_file;
pub mod daemon;
pub mod extension;
pub mod family;
pub mod files;
pub mod firewall;
pub mod forwarding;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod health;
pub mod ip_forward;
mod json;
pub mod keeper;
pub mod last_known;
pub mod lease;
pub mod network_config;
pub mod options;
mod pace;
mod predecessor;
mod prerequisites;
pub mod reconcile;
pub mod reload;
pub mod report;
mod running;
pub mod service_manager;
mod standing;
pub mod store;
pub mod uninstall;
pub mod uplink;
mod wall_clock;
pub mod wireguard;
pub mod worker;
