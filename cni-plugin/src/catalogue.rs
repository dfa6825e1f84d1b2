//! Every plugin that this executable is.

use crate::{bandwidth, firewall, flannel, loopback, plugin, portmap, tuning};
use cni_spec::Plugin;

/// What a plugin is for, which tells where it may be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// makes interfaces
    Interface,
    /// manages addresses: `ipam.type`
    Addresses,
    /// works on what the plugins before it in the conflist made
    Chained,
}

/// Name, role, and the plugin itself.
type Entry = (&'static str, Role, &'static (dyn Plugin + Sync));

/// By these names a conflist, an `ipam.type` or a delegating plugin asks for us.
static PLUGINS: [Entry; 11] = [
    ("flannel-rs", Role::Interface, &plugin::FLANNEL_RS),
    ("flannel", Role::Interface, &flannel::Flannel),
    ("bridge", Role::Interface, &plugin::BRIDGE),
    ("ptp", Role::Interface, &plugin::POINT_TO_POINT),
    ("loopback", Role::Interface, &loopback::Loopback),
    ("host-local", Role::Addresses, &ipam::host_local::Plugin),
    ("static", Role::Addresses, &ipam::fixed::Plugin),
    ("firewall", Role::Chained, &firewall::Firewall),
    ("portmap", Role::Chained, &portmap::PortMap),
    ("bandwidth", Role::Chained, &bandwidth::Bandwidth),
    ("tuning", Role::Chained, &tuning::Tuning),
];

/// The plugin called `name`, and what it is for.
pub(crate) fn find(name: &str) -> Option<(Role, &'static dyn Plugin)> {
    PLUGINS.iter().find(|(known, ..)| *known == name).map(|(_, role, plugin)| (*role, *plugin as &dyn Plugin))
}

/// All names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|(name, ..)| *name)
}
