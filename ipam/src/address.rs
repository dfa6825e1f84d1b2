//! Addresses of both families as numbers, so that the arithmetic of ranges is written once.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address as a number; order within a family is kept.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address `number` in the family of `family`; past its end there is only its last address.
pub(crate) fn address(number: u128, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// Width of an address of this family, in bits.
pub(crate) fn width(family: IpAddr) -> u8 {
    if family.is_ipv4() { 32 } else { 128 }
}

/// First and last address of `network` as numbers.
pub(crate) fn bounds(network: IpNetwork) -> (u128, u128) {
    (number(network.network()), number(network.broadcast()))
}

/// `network` without host bits.
pub(crate) fn without_host_bits(network: IpNetwork) -> IpNetwork {
    // The prefix comes from a network of the same family, so it always fits.
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

/// The address that `name` is the canonical text of: what reservation files are called. Anything else is no address.
pub(crate) fn from_canonical_text(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (address.to_canonical() == address && address.to_string() == name).then_some(address)
}
