//! The result of ADD, independent of version, and its form in each version.

use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What ADD made (spec section "Success").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// interfaces made by the attachment
    pub interfaces: Vec<Interface>,
    /// addresses
    pub ips: Vec<IpAssignment>,
    /// routes
    pub routes: Vec<Route>,
    /// name resolution
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// name
    pub name: String,
    /// hardware address as text, empty if none
    pub mac: String,
    /// MTU (1.1.0)
    pub mtu: Option<u32>,
    /// network namespace path; empty: the host
    pub sandbox: String,
    /// (1.1.0)
    pub socket_path: String,
    /// (1.1.0)
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpAssignment {
    /// index into `interfaces`; results of other plugins may point beyond its end (see [`AddResult::interface_of`])
    pub interface: Option<usize>,
    /// address with prefix length
    pub address: IpNetwork,
    /// gateway
    pub gateway: Option<IpAddr>,
}

/// One route of a result or of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// destination
    pub dst: IpNetwork,
    /// gateway
    pub gw: Option<IpAddr>,
    /// (1.1.0)
    pub mtu: Option<u32>,
    /// (1.1.0)
    pub advmss: Option<u32>,
    /// (1.1.0)
    pub priority: Option<u32>,
    /// (1.1.0)
    pub table: Option<u32>,
    /// (1.1.0)
    pub scope: Option<u8>,
}

/// Name resolution settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// servers
    pub nameservers: Vec<String>,
    /// domain
    pub domain: String,
    /// search list
    pub search: Vec<String>,
    /// options
    pub options: Vec<String>,
}

impl Route {
    /// A plain route to `dst`, over `gw` or else on link.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

impl AddResult {
    /// The interface that `ip` is on, if the result says so and lists it.
    pub fn interface_of(&self, ip: &IpAssignment) -> Option<&Interface> {
        self.interfaces.get(ip.interface?)
    }
}
