//! The subnets that the daemon may lease out of a network: flannel's rules of Network, SubnetLen, SubnetMin, SubnetMax.

use crate::address::{address, bounds, number, width, without_host_bits};
use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;

/// How many free subnets the choice is among.
const BAG: usize = 100;

/// A network configuration that makes no sense, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetPoolError(pub String);

impl fmt::Display for SubnetPoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SubnetPoolError {}

/// All subnets that may be leased out of one network, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetPool {
    network: IpNetwork,
    length: u8,
    first: u128,
    last: u128,
}

impl SubnetPool {
    /// The pool of `network`, whose host bits do not matter.
    ///
    /// `length` (SubnetLen) defaults to 24 in IPv4 and 64 in IPv6 if at least four such subnets fit, else to a quarter of
    /// the network. `min` and `max` (SubnetMin, SubnetMax: the first and last subnet to lease) default to the second
    /// subnet, because the first one's address is the network's own, and to the last.
    ///
    /// # Errors
    /// A network below /28 (IPv6: /124) without `length`, a `length` of more than 30 (126) or without room for four
    /// subnets, bounds of another family, outside of the network, not at the start of a subnet, or in the wrong order.
    pub fn new(
        network: IpNetwork,
        length: Option<u8>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, SubnetPoolError> {
        let fail = |text: String| Err(SubnetPoolError(text));
        let network = without_host_bits(network);
        let width = width(network.ip());
        let (usual, longest, smallest) = (if width == 32 { 24 } else { 64 }, width - 2, width - 4);
        let prefix = network.prefix();
        let length = match length {
            // A tunnel address and a bridge address are needed in each.
            Some(length) if length > longest => {
                return fail(format!("SubnetLen {length} is too long: at most {longest}"));
            }
            Some(length) if length < prefix.saturating_add(2) => {
                return fail(format!(
                    "network {network} must have room for at least four subnets of SubnetLen {length}"
                ));
            }
            Some(length) => length,
            None if prefix > smallest => {
                return fail(format!("network {network} is too small: at least /{smallest} is needed"));
            }
            None if prefix <= usual - 2 => usual,
            None => prefix + 2,
        };
        let size = 1_u128 << (width - length);
        let (lowest, highest) = bounds(network);
        let bound = |name: &str, given: Option<IpAddr>, default: u128| match given {
            None => Ok(default),
            Some(ip) if !network.contains(ip) => {
                Err(SubnetPoolError(format!("{name} {ip} is not in network {network}")))
            }
            Some(ip) if !number(ip).is_multiple_of(size) => {
                Err(SubnetPoolError(format!("{name} {ip} is not the first address of a /{length}")))
            }
            Some(ip) => Ok(number(ip)),
        };
        let first = bound("SubnetMin", min, lowest + size)?;
        // Not `highest + 1 - size`: the network may end with the address space.
        let last = bound("SubnetMax", max, highest - (size - 1))?;
        if first > last {
            let [first, last] = [first, last].map(|number| address(number, network.ip()));
            return fail(format!("SubnetMin {first} is after SubnetMax {last}"));
        }
        Ok(SubnetPool { network, length, first, last })
    }

    /// The network, without host bits.
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// Prefix length of the subnets.
    pub fn subnet_length(&self) -> u8 {
        self.length
    }

    /// All subnets in ascending order.
    pub fn candidates(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let SubnetPool { network, length, first, last } = *self;
        let size = 1_u128 << (width(network.ip()) - length);
        std::iter::successors(Some(first), move |number| number.checked_add(size).filter(|next| *next <= last))
            .filter_map(move |number| IpNetwork::new(address(number, network.ip()), length).ok())
    }

    /// Whether a lease of `subnet` fits this configuration: right size, inside SubnetMin and SubnetMax.
    pub fn is_compatible(&self, subnet: &IpNetwork) -> bool {
        subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.prefix() == self.length
            && (self.first..=self.last).contains(&number(subnet.network()))
    }

    /// One of the first 100 candidates that overlap nothing in `taken`, whatever its sizes; `choose(n)` gives an index below
    /// n. None: all are taken. The more there is to choose from, the less often nodes that start together collide.
    pub fn pick<'a>(
        &self,
        taken: impl IntoIterator<Item = &'a IpNetwork>,
        choose: impl FnOnce(usize) -> usize,
    ) -> Option<IpNetwork> {
        let same_family = taken.into_iter().filter(|taken| taken.is_ipv4() == self.network.is_ipv4());
        let mut taken: Vec<(u128, u128)> = same_family.map(|taken| bounds(*taken)).collect();
        taken.sort_unstable();
        let mut taken = taken.into_iter().peekable();
        // Both lists ascend, so one pass over each is enough. What ends before a candidate is of no concern to later ones;
        // a taken network may contain others, which is why the furthest end is kept.
        let mut blocked_to = None;
        let is_free = |candidate: &IpNetwork| {
            let (from, to) = bounds(*candidate);
            while let Some((_, end)) = taken.next_if(|(start, _)| *start <= to) {
                blocked_to = blocked_to.max(Some(end));
            }
            blocked_to.is_none_or(|end| end < from)
        };
        let bag: Vec<IpNetwork> = self.candidates().filter(is_free).take(BAG).collect();
        let index = if bag.is_empty() { return None } else { choose(bag.len()) };
        bag.get(index).or(bag.first()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str, length: Option<u8>, min: &str, max: &str) -> Result<SubnetPool, SubnetPoolError> {
        SubnetPool::new(network.parse().unwrap(), length, min.parse().ok(), max.parse().ok())
    }

    fn ends(network: &str, length: Option<u8>) -> (String, String, usize) {
        let all: Vec<_> = pool(network, length, "", "").unwrap().candidates().collect();
        (all[0].to_string(), all[all.len() - 1].to_string(), all.len())
    }

    #[test]
    fn defaults_are_flannels() {
        assert_eq!(ends("10.3.0.0/16", None), ("10.3.1.0/24".into(), "10.3.255.0/24".into(), 255));
        assert_eq!(ends("10.3.0.7/16", None), ends("10.3.0.0/16", None));
        assert_eq!(ends("10.3.0.0/22", None), ("10.3.1.0/24".into(), "10.3.3.0/24".into(), 3));
        assert_eq!(ends("10.3.0.0/23", None), ("10.3.0.128/25".into(), "10.3.1.128/25".into(), 3));
        assert_eq!(ends("10.3.0.0/28", None), ("10.3.0.4/30".into(), "10.3.0.12/30".into(), 3));
        assert_eq!(ends("fd00:42::/56", None), ("fd00:42:0:1::/64".into(), "fd00:42:0:ff::/64".into(), 255));
        let quarters = ("fd00:42:0:0:8000::/65".into(), "fd00:42:0:1:8000::/65".into(), 3);
        assert_eq!(ends("fd00:42::/63", None), quarters);
        assert_eq!(ends("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0/112", Some(120)).2, 255);
        assert_eq!(ends("255.255.0.0/16", Some(18)), ("255.255.64.0/18".into(), "255.255.192.0/18".into(), 3));
        assert!(pool("::/0", None, "", "").unwrap().candidates().next().is_some());
    }

    #[test]
    fn bounds_and_limits_are_checked() {
        let bounded = pool("10.3.0.0/16", None, "10.3.4.0", "10.3.6.0").unwrap();
        assert_eq!(bounded.candidates().count(), 3);
        for (subnet, fits) in [
            ("10.3.4.0/24", true),
            ("10.3.6.0/24", true),
            ("10.3.7.0/24", false),
            ("10.3.4.0/25", false),
            ("fd00::/24", false),
        ] {
            assert_eq!(bounded.is_compatible(&subnet.parse().unwrap()), fits, "{subnet}");
        }
        for (network, length, min, max, word) in [
            ("10.3.0.0/29", None, "", "", "too small"),
            ("fd00::/125", None, "", "", "too small"),
            ("10.3.0.0/16", Some(31), "", "", "too long"),
            ("fd00::/64", Some(127), "", "", "too long"),
            ("10.3.0.0/16", Some(17), "", "", "four subnets"),
            ("10.3.0.0/32", Some(30), "", "", "four subnets"),
            ("10.3.0.0/16", None, "10.4.0.0", "", "SubnetMin 10.4.0.0 is not in"),
            ("10.3.0.0/16", None, "fd00::", "", "is not in"),
            ("10.3.0.0/16", None, "", "10.3.4.1", "SubnetMax 10.3.4.1 is not the first"),
            ("10.3.0.0/16", None, "10.3.5.0", "10.3.4.0", "after SubnetMax"),
        ] {
            let error = pool(network, length, min, max).unwrap_err().to_string();
            assert!(error.contains(word), "{network}: {error}");
        }
    }

    #[test]
    fn picks_among_the_first_hundred_free() {
        let pool = pool("10.3.0.0/16", None, "", "").unwrap();
        let taken: Vec<IpNetwork> =
            ["10.3.0.0/20", "10.3.17.0/25", "10.3.18.0/24", "fd00::/8"].map(|text| text.parse().unwrap()).into();
        assert_eq!(pool.pick(&taken, |_| 0), "10.3.16.0/24".parse().ok());
        assert_eq!(pool.pick(&taken, |_| 1), "10.3.19.0/24".parse().ok());
        assert_eq!(pool.pick(&taken, |n| n - 1), "10.3.117.0/24".parse().ok());
        let mut count = 0;
        pool.pick(&taken, |n| {
            count = n;
            0
        });
        assert_eq!(count, 100);
        let all: Vec<_> = pool.candidates().collect();
        assert_eq!(pool.pick(&all, |_| 0), None);
        assert_eq!(pool.pick(&all[..254], |n| n - 1), all.last().copied());
        assert_eq!(pool.pick([&"0.0.0.0/0".parse().unwrap()], |_| 0), None);
    }
}
