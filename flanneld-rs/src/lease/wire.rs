//! Leases as bytes, exactly as Go flannel reads and writes them (`MakeSubnetKey` and the JSON of `LeaseAttrs`).
//!
//! Whoever may write to the store is not trusted: what is parsed here is bounded in size, and is one address for one text, so
//! that two keys never mean the same subnets.

use super::{Announcement, Endpoint, Lease, Subnets, key};
use crate::family::{Family, PerFamily};
use crate::json::Object;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest lease value that is read. Real ones have about 200 bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Longest key: two addresses with their lengths have 64 bytes at most.
const MAX_KEY_BYTES: usize = 128;
/// Longest backend type.
const MAX_TYPE_BYTES: usize = 64;
/// Longest backend data; a bound on what is kept of each peer.
const MAX_DATA_BYTES: usize = 16 * 1024;

/// Why an entry of the store is no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

impl Lease {
    /// Parses an entry of a store: the last part of its key, and its value.
    ///
    /// # Errors
    /// In words, without the key.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { subnets: parse_key(key)?, announcement: Announcement::parse(value)? })
    }
}

/// Parses the last part of a lease's key; the reverse of [`key`].
///
/// # Errors
/// In words.
pub fn parse_key(text: &str) -> Result<Subnets, Malformed> {
    if text.len() > MAX_KEY_BYTES {
        return Err(Malformed(format!("the key has {} bytes", text.len())));
    }
    let mut subnets = Subnets::default();
    for part in text.split('&') {
        let subnet = parse_subnet(part, '-')?;
        let family = Family::of(subnet.ip());
        if subnets.set(family, subnet).is_some() {
            return Err(Malformed(format!("the key names two {family} subnets")));
        }
    }
    // IPv6 before IPv4, leading zeros, host bits, upper case: another spelling of a key that may exist beside this one.
    match key(&subnets) {
        proper if proper == text => Ok(subnets),
        proper => Err(Malformed(format!("the key is not in its proper form, {proper}"))),
    }
}

/// Parses a subnet as Kubernetes writes it, `10.5.52.0/24`, within the bounds of those in keys. Host bits are dropped, as Go
/// does.
///
/// # Errors
/// In words.
pub(crate) fn parse_cidr(text: &str) -> Result<IpNetwork, Malformed> {
    let subnet = parse_subnet(text, '/')?;
    IpNetwork::new(subnet.network(), subnet.prefix()).map_err(|error| Malformed(error.to_string()))
}

fn parse_subnet(part: &str, separator: char) -> Result<IpNetwork, Malformed> {
    let malformed = |why: &str| Malformed(format!("{part:?} is no subnet: {why}"));
    let (address, length) = part.split_once(separator).ok_or_else(|| malformed("it has no prefix length"))?;
    let address: IpAddr = address.parse().map_err(|_| malformed("it has no address"))?;
    let length: u8 = length.parse().map_err(|_| malformed("its prefix length is no number"))?;
    let family = Family::of(address);
    // flannel's own upper bounds (5 and 7 bits). Below: a lease for a large part of the Internet is an attack or a mistake.
    let shortest = match family {
        Family::V4 => 8,
        Family::V6 => 16,
    };
    if length < shortest || length >= family.bits() {
        return Err(malformed("its prefix length is out of bounds"));
    }
    if !is_unicast(address) {
        return Err(malformed("its address is none of a host"));
    }
    IpNetwork::new(address, length).map_err(|error| malformed(&error.to_string()))
}

fn is_unicast(address: IpAddr) -> bool {
    let family_rules = match address {
        IpAddr::V4(address) => !address.is_broadcast(),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
    };
    family_rules && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

impl Announcement {
    /// The value of a lease as flannel writes it: field order, nulls and absences.
    pub fn to_json(&self) -> String {
        format!("{{{}}}", self.members())
    }

    /// The members of the JSON object, without its braces.
    pub(crate) fn members(&self) -> String {
        let quoted = |text: String| serde_json::Value::String(text).to_string();
        let endpoint = |family| self.endpoints.get(family);
        let address = |family| endpoint(family).map(|endpoint: &Endpoint| quoted(endpoint.public_ip.to_string()));
        let data = |family| endpoint(family).and_then(|endpoint: &Endpoint| endpoint.data.clone());
        // Go's zero value of an IPv4 address; flannel itself never writes a lease without one.
        let v4 = address(Family::V4).unwrap_or_else(|| quoted(Ipv4Addr::UNSPECIFIED.to_string()));
        let v6 = address(Family::V6).unwrap_or_else(|| "null".into());
        let mut members = format!(r#""PublicIP":{v4},"PublicIPv6":{v6}"#);
        let backend_type = Some(self.backend_type.clone()).filter(|name| !name.is_empty()).map(quoted);
        for (name, value) in
            [("BackendType", backend_type), ("BackendData", data(Family::V4)), ("BackendV6Data", data(Family::V6))]
        {
            if let Some(value) = value {
                members.push_str(&format!(",\"{name}\":{value}"));
            }
        }
        members
    }

    /// Parses the value of a lease. Member names are matched as Go does, unknown members are ignored.
    ///
    /// # Errors
    /// In words.
    pub fn parse(value: &[u8]) -> Result<Self, Malformed> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Malformed(format!("the value has {} bytes, more than {MAX_VALUE_BYTES}", value.len())));
        }
        let object: Object = serde_json::from_slice(value)
            .map_err(|error| Malformed(format!("the value is no JSON object: {error}")))?;
        let v4: Option<Ipv4Addr> = member(&object, "PublicIP")?;
        let v6: Option<Ipv6Addr> = member(&object, "PublicIPv6")?;
        let mut announcement = Self::of_type(member(&object, "BackendType")?.unwrap_or_default())?;
        for (address, data) in [
            (v4.filter(|address| !address.is_unspecified()).map(IpAddr::V4), "BackendData"),
            (v6.filter(|address| !address.is_unspecified()).map(IpAddr::V6), "BackendV6Data"),
        ] {
            let Some(public_ip) = address else { continue };
            announcement.endpoints.set(Family::of(public_ip), Endpoint::parse(public_ip, object.get(data))?);
        }
        if announcement.endpoints.is_empty() {
            return Err(Malformed("it has no public address".into()));
        }
        Ok(announcement)
    }

    /// Without endpoints so far.
    ///
    /// # Errors
    /// The type is too long for one.
    pub(crate) fn of_type(backend_type: String) -> Result<Self, Malformed> {
        if backend_type.len() > MAX_TYPE_BYTES {
            return Err(Malformed(format!("the backend type has {} bytes", backend_type.len())));
        }
        Ok(Self { backend_type, endpoints: PerFamily::default() })
    }
}

impl Endpoint {
    /// As another node tells of itself.
    ///
    /// # Errors
    /// The address is none of a host, or the data is too long.
    pub(crate) fn parse(public_ip: IpAddr, data: Option<&RawValue>) -> Result<Self, Malformed> {
        if !is_unicast(public_ip) {
            return Err(Malformed(format!("public address {public_ip} is none of a host")));
        }
        let data = data.map(compact).filter(|text| text != "null");
        match data.as_ref().filter(|data| data.len() > MAX_DATA_BYTES) {
            Some(data) => Err(Malformed(format!("backend data has {} bytes, more than {MAX_DATA_BYTES}", data.len()))),
            None => Ok(Self { public_ip, data }),
        }
    }
}

fn member<'a, T: Deserialize<'a>>(object: &'a Object, name: &str) -> Result<Option<T>, Malformed> {
    object.read(name).map_err(|error| Malformed(format!("{name}: {error}")))
}

/// The same JSON without the white space between its tokens, which is how Go writes it.
fn compact(json: &RawValue) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |letter: &char| {
        let kept = in_string || !letter.is_ascii_whitespace();
        in_string ^= *letter == '"' && !escaped;
        escaped = in_string && *letter == '\\' && !escaped;
        kept
    };
    json.get().chars().filter(keep).collect()
}
