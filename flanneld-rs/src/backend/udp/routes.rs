//! Which node has a destination: the longest prefix that matches, as in the kernel.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, SocketAddr};

/// A table that is made once and asked for each packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// by length of the prefix, the longest first; all nodes usually have the same
    lengths: Vec<(u8, Vec<(u128, SocketAddr)>)>,
}

impl Routes {
    /// From prefixes of one family, and where to send what is for them.
    pub(super) fn new<'a>(subnets: impl IntoIterator<Item = (&'a IpNetwork, &'a SocketAddr)>) -> Self {
        let mut lengths = std::collections::BTreeMap::<u8, Vec<_>>::new();
        for (subnet, node) in subnets {
            lengths.entry(subnet.prefix()).or_default().push((bits(subnet.network()), *node));
        }
        for nodes in lengths.values_mut() {
            nodes.sort_unstable();
        }
        Routes { lengths: lengths.into_iter().rev().collect() }
    }

    /// Where to send what is for `destination`.
    pub(super) fn find(&self, destination: IpAddr) -> Option<SocketAddr> {
        let destination = bits(destination);
        self.lengths.iter().find_map(|(length, nodes)| {
            let network = destination & u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
            let at = nodes.binary_search_by_key(&network, |(network, _)| *network).ok()?;
            nodes.get(at).map(|(_, node)| *node)
        })
    }
}

/// The bits of an address from the left, so that a prefix is a prefix in either family.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_in_either_family() {
        for (subnets, cases) in [
            (
                ["10.5.1.0/24", "10.5.2.0/24", "10.5.0.0/16", "10.5.2.128/25"],
                [
                    ("10.5.1.9", Some(0)),
                    ("10.5.2.9", Some(1)),
                    ("10.5.2.200", Some(3)),
                    ("10.5.3.1", Some(2)),
                    ("10.6.0.1", None),
                ],
            ),
            (
                ["fd00:5:1::/64", "fd00:5:2::/64", "fd00:5::/32", "fd00:5:2::8000:0:0:0/65"],
                [
                    ("fd00:5:1::9", Some(0)),
                    ("fd00:5:2::9", Some(1)),
                    ("fd00:5:2::8000:0:0:9", Some(3)),
                    ("fd00:5:3::", Some(2)),
                    ("fd00:6::", None),
                ],
            ),
        ] {
            let nodes: Vec<(IpNetwork, SocketAddr)> = (0u16..)
                .zip(subnets)
                .map(|(port, subnet)| (subnet.parse().unwrap(), SocketAddr::new([192, 0, 2, 1].into(), port)))
                .collect();
            let routes = Routes::new(nodes.iter().map(|(subnet, node)| (subnet, node)));
            for (destination, node) in cases {
                let found = routes.find(destination.parse().unwrap()).map(|node| node.port());
                assert_eq!(found, node, "{destination}");
            }
        }
        assert_eq!(Routes::default().find([10, 5, 1, 1].into()), None);
        let all = ["0.0.0.0/0".parse().unwrap()];
        let node = "192.0.2.1:1".parse().unwrap();
        assert_eq!(Routes::new(all.iter().map(|all| (all, &node))).find([8, 8, 8, 8].into()), Some(node));
    }
}
