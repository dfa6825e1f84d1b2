//! The Container Network Interface protocol: requests, network configurations, results and errors, for every version of
//! the specification from 0.1.0 to 1.1.0. Nothing here touches the kernel or the disk; only [`serve`] reads standard
//! input and the environment and prints the one answer.

mod config;
mod error;
mod request;
mod result;
mod serve;
mod version;

pub use config::NetworkConfig;
pub use error::{CniError, Code};
pub use request::{Arguments, AttachmentId, Request, Sandbox};
pub use result::{AddResult, Dns, Interface, IpAssignment, Route};
pub use serve::{Plugin, serve};
pub use version::SpecVersion;
