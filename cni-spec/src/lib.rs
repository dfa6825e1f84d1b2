//! The Container Network Interface protocol: requests, network configurations, results and errors, for every version of
//! the specification from 0.1.0 to 1.1.0. Nothing here touches the kernel or the disk; only [`serve()`] reads standard
//! input and the environment and prints the one answer.

mod config;
mod decode;
mod encode;
mod environment;
mod error;
mod field;
mod pretty;
mod request;
mod result;
mod serve;
mod version;

pub use config::{MAX_CONFIG_SIZE, NetworkConfig};
pub use error::{CniError, Code};
pub use field::Field;
pub use request::{Arguments, AttachmentId, Request, Sandbox};
pub use result::{AddResult, Dns, Interface, IpAssignment, Route};
pub use serve::{Answer, Plugin, answer, serve};
pub use version::SpecVersion;
