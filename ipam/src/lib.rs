//! Address allocation for pods and subnets for nodes.
//!
//! Pure values decide ([`range`], [`pool`], [`subnet_pool`]); the [`ledger`] keeps the decisions on disk, in the format of
//! the reference plugin `host-local`; [`host_local`] is the plugin around the two, [`fixed`] is the plugin `static`;
//! [`subnet_env`] is the file in which the daemon tells the plugins what this node may hand out.

mod address;
mod error;
pub mod fixed;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod host_local;
pub mod ledger;
pub mod own_file;
pub mod pool;
pub mod range;
pub mod regular_file;
pub mod subnet_env;
pub mod subnet_pool;

pub use error::IpamError;
