//! The only door to Linux. Pure values ([`Overlay`], nft tables) come in, the kernel's state comes out; everything that
//! we make carries our mark: [`ROUTE_PROTOCOL`], a link alias, or an nftables table of our own.

pub mod advertisements;
mod apply;
pub mod batch;
pub mod conntrack;
pub mod detached;
mod diff;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod intact;
pub mod ip_tables;
mod mac;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
mod observe;
mod overlay;
mod parts;
mod privilege;
pub mod process;
pub mod sysctl;
pub mod tun;
#[cfg(feature = "watch")]
pub mod watch;
pub mod wireguard;

pub use apply::apply;
pub use diff::diff;
pub use error::{Error, Result};
pub use intact::is_intact;
pub use mac::Mac;
pub use observe::{Scope, observe};
pub use overlay::{
    Change, Drift, IpipLink, LinkUpdate, Overlay, Route, StrayRoute, TunLink, Tunnel, VxlanLink, WireGuardLink,
};
pub use privilege::may_configure_network;

/// The routing protocol number that marks our routes (`ip route show proto 251`; see rt_protos: 251 is unassigned).
pub const ROUTE_PROTOCOL: u8 = 251;

/// The routing protocol number of a node's routes to its own pods, which the plugins make: not the daemon's, which removes
/// what carries its number and follows from no lease.
pub const POD_ROUTE_PROTOCOL: u8 = 252;

/// The metric of our routes that refuse packets: worse than that of any route that leads somewhere.
pub const REFUSAL_METRIC: u32 = 2_000_000_000;

/// The alias of the devices that the daemon makes (`ip -details link show`).
pub const LINK_ALIAS: &str = "flanneld-rs";
