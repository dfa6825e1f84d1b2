//! Ranges of addresses, checked once: a range that exists can be allocated from.

use crate::address::{address, bounds, number, width, without_host_bits};
use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;

/// Most ranges in a set.
const MAX_RANGES: usize = 256;

/// A range or range set that makes no sense, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeError(pub String);

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RangeError {}

/// A contiguous part of one subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
}

impl Range {
    /// The addresses of `subnet` from `start` (default: the first usable) to `end` (default: the last usable), both
    /// inclusive. `gateway` (default: the first usable address of the subnet) is never handed out.
    ///
    /// # Errors
    /// Host bits in `subnet`, a subnet without room for two hosts, bounds outside it or in the wrong order, a gateway of
    /// another family.
    pub fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, RangeError> {
        let family = subnet.ip();
        let network = without_host_bits(subnet);
        if network.ip() != family {
            let text = format!("network {subnet} has host bits set: for this length it is {network}");
            return Err(RangeError(text));
        }
        if subnet.prefix() > width(family) - 2 {
            return Err(RangeError(format!("network {subnet} is too small to allocate from")));
        }
        let (lowest, highest) = bounds(subnet);
        // Only IPv4 has a broadcast address.
        let last_usable = if family.is_ipv4() { highest - 1 } else { highest };
        let bound = |name: &str, given: Option<IpAddr>, default: u128| match given.map(|ip| ip.to_canonical()) {
            None => Ok(address(default, family)),
            Some(ip) if subnet.contains(ip) => Ok(ip),
            Some(ip) => Err(RangeError(format!("{name} {ip} is not in network {subnet}"))),
        };
        let first = bound("rangeStart", start, lowest + 1)?;
        let last = bound("rangeEnd", end, last_usable)?;
        if first > last {
            return Err(RangeError(format!("rangeStart {first} is after rangeEnd {last}")));
        }
        let gateway = gateway.map_or_else(|| address(lowest + 1, family), |ip| ip.to_canonical());
        if gateway.is_ipv4() != family.is_ipv4() {
            return Err(RangeError(format!("gateway {gateway} is not of the family of network {subnet}")));
        }
        Ok(Range { subnet, first, last, gateway })
    }

    /// The subnet, whose prefix length the allocated addresses get.
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// First address of the range.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address of the range.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The gateway of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether `ip` lies between the bounds.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&ip)
    }

    /// Why `ip`, an address of this range, is never handed out; none for an address that is.
    pub fn reserved_for(&self, ip: IpAddr) -> Option<&'static str> {
        let (lowest, highest) = bounds(self.subnet);
        match number(ip) {
            _ if ip == self.gateway => Some("gateway"),
            // In IPv6 the anycast address of the subnet's routers: RFC 4291 section 2.6.1.
            number if number == lowest => Some("network address"),
            number if number == highest && ip.is_ipv4() => Some("broadcast address"),
            _ => None,
        }
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ranges of one family that are used as one pool: an attachment gets one address from each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// A set of `ranges`, used in this order.
    ///
    /// # Errors
    /// No range, more than 256, both families, ranges that overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeError> {
        let Some(head) = ranges.first() else { return Err(RangeError("empty range set".into())) };
        if ranges.len() > MAX_RANGES {
            return Err(RangeError(format!("more than {MAX_RANGES} ranges")));
        }
        if ranges.iter().any(|range| range.first.is_ipv4() != head.first.is_ipv4()) {
            return Err(RangeError("mixed address families in one range set: use one set per family".into()));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(index + 1).find(|other| range.overlaps(other)) {
                return Err(RangeError(format!("ranges {range} and {other} overlap")));
            }
        }
        Ok(RangeSet { ranges })
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The range that `ip` lies in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(ip))
    }

    /// Whether the set is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.ranges.iter().all(|range| range.first.is_ipv4())
    }

    /// Whether an address could come out of either set.
    pub fn overlaps(&self, other: &RangeSet) -> bool {
        self.ranges.iter().any(|range| other.ranges.iter().any(|theirs| range.overlaps(theirs)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}
