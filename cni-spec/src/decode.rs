//! Reading a result: a `prevResult`, or what a delegate answered.

use crate::{AddResult, CniError, Dns, Field, Interface, IpAssignment, Route, SpecVersion};
use ipnetwork::IpNetwork;
use serde_json::Value;

impl AddResult {
    /// Reads a result in the format of `version`, unless it states another version of the same format.
    ///
    /// Fields that are newer than `version` are read if they are there: the reference plugins print them into older
    /// versions, and nothing is gained by refusing them. Unknown fields are ignored.
    ///
    /// # Errors
    /// `InvalidConfig` with the path of the field that is missing or malformed, or for a `cniVersion` whose format
    /// differs from that of `version`.
    pub fn from_json(value: &Value, version: SpecVersion) -> Result<Self, CniError> {
        Self::read(&Field::new("result", Some(value)), version)
    }

    pub(crate) fn read(result: &Field<'_>, version: SpecVersion) -> Result<Self, CniError> {
        let stated = result.field("cniVersion")?;
        if let Some(other) = stated.string()? {
            let other: SpecVersion = other.parse().map_err(|error| stated.invalid(error))?;
            if Format::of(other) != Format::of(version) {
                return Err(stated.invalid(format!("{other} is another format than that of {version}")));
            }
        }
        match Format::of(version) {
            Format::PerFamily => per_family(result),
            Format::ListsWithFamily | Format::Lists => lists(result),
        }
    }
}

/// The three shapes that results have had.
#[derive(PartialEq, Eq)]
enum Format {
    PerFamily,
    ListsWithFamily,
    Lists,
}

impl Format {
    fn of(version: SpecVersion) -> Self {
        match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => Format::PerFamily,
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => Format::ListsWithFamily,
            SpecVersion::V1_0_0 | SpecVersion::V1_1_0 => Format::Lists,
        }
    }
}

fn per_family(result: &Field<'_>) -> Result<AddResult, CniError> {
    let mut read = AddResult { dns: Dns::read(&result.field("dns")?)?, ..AddResult::default() };
    for key in ["ip4", "ip6"] {
        let family = result.field(key)?;
        if family.value().is_none() {
            continue;
        }
        let ip = family.field("ip")?;
        let address = required_network(&ip)?;
        if address.is_ipv4() != (key == "ip4") {
            return Err(ip.wanted("an address of this family"));
        }
        read.ips.push(IpAssignment { interface: None, address, gateway: family.field("gateway")?.address()? });
        read.routes.extend(routes(&family.field("routes")?)?);
    }
    Ok(read)
}

fn lists(result: &Field<'_>) -> Result<AddResult, CniError> {
    Ok(AddResult {
        interfaces: result.field("interfaces")?.items()?.iter().map(interface).collect::<Result<_, _>>()?,
        ips: result.field("ips")?.items()?.iter().map(ip).collect::<Result<_, _>>()?,
        routes: routes(&result.field("routes")?)?,
        dns: Dns::read(&result.field("dns")?)?,
    })
}

fn interface(item: &Field<'_>) -> Result<Interface, CniError> {
    Ok(Interface {
        name: text(item, "name")?,
        mac: text(item, "mac")?,
        mtu: positive(&item.field("mtu")?)?,
        sandbox: text(item, "sandbox")?,
        socket_path: text(item, "socketPath")?,
        pci_id: text(item, "pciID")?,
    })
}

/// `version` ("4" or "6", before 1.0.0) is not looked at: the address says it, and reference plugins forget it.
fn ip(item: &Field<'_>) -> Result<IpAssignment, CniError> {
    Ok(IpAssignment {
        interface: item.field("interface")?.number()?,
        address: required_network(&item.field("address")?)?,
        gateway: item.field("gateway")?.address()?,
    })
}

fn routes(list: &Field<'_>) -> Result<Vec<Route>, CniError> {
    list.items()?.iter().map(Route::read).collect()
}

impl Route {
    /// Reads one route, of a result or of a configuration (`ipam.routes`): `dst`, and optionally `gw` and the fields of
    /// 1.1.0.
    ///
    /// # Errors
    /// `InvalidConfig` with the path of the field that is missing or malformed.
    pub fn read(item: &Field<'_>) -> Result<Self, CniError> {
        Ok(Route {
            dst: required_network(&item.field("dst")?)?,
            gw: item.field("gw")?.address()?,
            mtu: positive(&item.field("mtu")?)?,
            advmss: positive(&item.field("advmss")?)?,
            priority: positive(&item.field("priority")?)?,
            table: item.field("table")?.number()?,
            scope: item.field("scope")?.number()?,
        })
    }
}

impl Dns {
    /// Reads name resolution settings, of a result or of a configuration (`dns`); all of them may be missing.
    ///
    /// # Errors
    /// `InvalidConfig` with the path of the field that is malformed.
    pub fn read(dns: &Field<'_>) -> Result<Self, CniError> {
        Ok(Dns {
            nameservers: dns.field("nameservers")?.strings()?,
            domain: text(dns, "domain")?,
            search: dns.field("search")?.strings()?,
            options: dns.field("options")?.strings()?,
        })
    }
}

fn required_network(field: &Field<'_>) -> Result<IpNetwork, CniError> {
    field.network()?.ok_or_else(|| field.wanted("an address with prefix length such as 10.1.0.5/16"))
}

fn text(item: &Field<'_>, key: &str) -> Result<String, CniError> {
    Ok(item.field(key)?.string()?.unwrap_or_default().to_owned())
}

/// Zero is how Go programs say "not set".
fn positive(field: &Field<'_>) -> Result<Option<u32>, CniError> {
    Ok(field.number()?.filter(|number| *number != 0))
}
