//! The printed form of a result in each version of the specification.
//!
//! Structs and not maps, so that keys come in the reference's order and the text is the same to the byte.

use crate::{AddResult, CniError, Code, Interface, IpAssignment, Route, SpecVersion};
use ipnetwork::IpNetwork;
use serde::Serialize;
use serde_json::Value;
use std::net::IpAddr;

impl AddResult {
    /// The JSON of this result in `version`. What that version cannot say is left out: up to 0.2.0 interfaces and all
    /// but the first address of each family, before 1.1.0 the fields that came with it.
    ///
    /// # Errors
    /// `IncompatibleVersion` if there is no address, which a result up to 0.2.0 must have.
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, CniError> {
        serde_json::to_value(self.printed(version)?).map_err(|error| CniError::new(Code::Internal, error.to_string()))
    }

    /// The same as text, in the layout of the reference plugins (four spaces, no newline at the end).
    ///
    /// # Errors
    /// As [`AddResult::to_json`].
    pub fn to_text(&self, version: SpecVersion) -> Result<String, CniError> {
        self.printed(version).map(|printed| crate::pretty::text(&printed))
    }

    fn printed(&self, version: SpecVersion) -> Result<Printed<'_>, CniError> {
        if version <= SpecVersion::V0_2_0 {
            self.per_family(version).map(Printed::PerFamily)
        } else {
            Ok(Printed::Lists(self.lists(version)))
        }
    }

    fn per_family(&self, version: SpecVersion) -> Result<PerFamily<'_>, CniError> {
        let family = |is_ipv4: bool| {
            let ip = self.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4)?;
            let routes = self.routes.iter().filter(|route| route.dst.is_ipv4() == is_ipv4);
            Some(FamilyOut { ip: ip.address, gateway: ip.gateway, routes: routes.map(RouteOut::basic).collect() })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("a result without an address cannot be told in cniVersion {version}: use 0.3.0 or later"),
            ));
        }
        Ok(PerFamily { version, ip4, ip6, dns: DnsOut::of(self) })
    }

    fn lists(&self, version: SpecVersion) -> Lists<'_> {
        Lists {
            version,
            interfaces: self.interfaces.iter().map(|interface| InterfaceOut::of(interface, version)).collect(),
            ips: self.ips.iter().map(|ip| IpOut::of(ip, version)).collect(),
            routes: self.routes.iter().map(|route| RouteOut::of(route, version)).collect(),
            dns: DnsOut::of(self),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Printed<'a> {
    PerFamily(PerFamily<'a>),
    Lists(Lists<'a>),
}

/// 0.1.0 and 0.2.0
#[derive(Serialize)]
struct PerFamily<'a> {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<FamilyOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<FamilyOut>,
    dns: DnsOut<'a>,
}

#[derive(Serialize)]
struct FamilyOut {
    ip: IpNetwork,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteOut>,
}

/// 0.3.0 and later
#[derive(Serialize)]
struct Lists<'a> {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<InterfaceOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteOut>,
    dns: DnsOut<'a>,
}

#[derive(Serialize)]
struct InterfaceOut<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
    #[serde(rename = "socketPath", skip_serializing_if = "str::is_empty")]
    socket_path: &'a str,
    #[serde(rename = "pciID", skip_serializing_if = "str::is_empty")]
    pci_id: &'a str,
}

impl<'a> InterfaceOut<'a> {
    fn of(interface: &'a Interface, version: SpecVersion) -> Self {
        let basic = InterfaceOut {
            name: &interface.name,
            mac: &interface.mac,
            mtu: None,
            sandbox: &interface.sandbox,
            socket_path: "",
            pci_id: "",
        };
        if version < SpecVersion::V1_1_0 {
            return basic;
        }
        InterfaceOut {
            mtu: known(interface.mtu),
            socket_path: &interface.socket_path,
            pci_id: &interface.pci_id,
            ..basic
        }
    }
}

#[derive(Serialize)]
struct IpOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
    address: IpNetwork,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl IpOut {
    fn of(ip: &IpAssignment, version: SpecVersion) -> Self {
        let family = if ip.address.is_ipv4() { "4" } else { "6" };
        IpOut {
            version: (version < SpecVersion::V1_0_0).then_some(family),
            interface: ip.interface,
            address: ip.address,
            gateway: ip.gateway,
        }
    }
}

#[derive(Serialize)]
struct RouteOut {
    dst: IpNetwork,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advmss: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

impl RouteOut {
    fn basic(route: &Route) -> Self {
        RouteOut { dst: route.dst, gw: route.gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    fn of(route: &Route, version: SpecVersion) -> Self {
        let basic = Self::basic(route);
        if version < SpecVersion::V1_1_0 {
            return basic;
        }
        RouteOut {
            mtu: known(route.mtu),
            advmss: known(route.advmss),
            priority: known(route.priority),
            table: route.table,
            scope: route.scope,
            ..basic
        }
    }
}

/// Always printed, if only as `{}`, because Go does not leave out structs.
#[derive(Serialize)]
struct DnsOut<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nameservers: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    search: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
}

impl<'a> DnsOut<'a> {
    fn of(result: &'a AddResult) -> Self {
        let dns = &result.dns;
        DnsOut { nameservers: &dns.nameservers, domain: &dns.domain, search: &dns.search, options: &dns.options }
    }
}

/// For the reference, zero is how these numbers say "not set". (Table and scope have a meaning for zero.)
fn known(number: Option<u32>) -> Option<u32> {
    number.filter(|number| *number != 0)
}
