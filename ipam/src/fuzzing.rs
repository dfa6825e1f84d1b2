//! A way in for the fuzz targets: files that others may have written. Not part of any build but theirs.

use crate::ledger::{Holder, parse_reservation};
use cni_spec::Dns;

/// The content of a reservation file: its holder, and the content that we would write for it.
pub fn reservation(content: &[u8]) -> Option<(Holder, String)> {
    parse_reservation(content).map(|holder| (holder.clone(), holder.text()))
}

/// The content of a resolv.conf.
pub fn resolv_conf(text: &str) -> Dns {
    crate::host_local::parse_resolv_conf(text)
}
