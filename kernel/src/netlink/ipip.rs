//! Tunnels of IPv4 in IPv4 (RFC 2003).

use super::link::{LinkChange, valid};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use super::{Netlink, attributes};
use crate::{Error, IpipLink, Result};
use netlink_packet_route::link::{InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::errno::Errno;
use std::net::Ipv4Addr;

/// Of IFLA_INFO_DATA (linux/if_tunnel.h).
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;

/// What an IPv4-in-IPv4 device was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpipAttributes {
    /// outer source address
    pub local: Option<Ipv4Addr>,
    /// the only other end, where there is only one
    pub remote: Option<Ipv4Addr>,
}

impl IpipAttributes {
    /// Reads IFLA_INFO_DATA of such a device.
    pub(super) fn decode(data: &[u8]) -> Self {
        let mut found = IpipAttributes::default();
        let any = |address: Ipv4Addr| Some(address).filter(|address| !address.is_unspecified());
        for attribute in attributes(data) {
            let address = || <[u8; 4]>::try_from(attribute.value()).ok().map(Ipv4Addr::from).and_then(any);
            match attribute.kind() {
                IFLA_IPTUN_LOCAL => found.local = address(),
                IFLA_IPTUN_REMOTE => found.remote = address(),
                _ => {}
            }
        }
        found
    }
}

impl Netlink {
    /// Makes an IPv4-in-IPv4 device, marks it with `alias` and switches it on. It ignores router advertisements and gets no
    /// IPv6 link-local address. EEXIST if the name is taken, EOPNOTSUPP if the kernel has no such devices.
    pub fn create_ipip(&mut self, name: &str, link: &IpipLink, alias: &str) -> Result<()> {
        let operation = || format!("creating ipip {name} (local {})", link.local);
        let mark = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        let mute = LinkChange { link_local: Some(false), ..LinkChange::default() };
        let made = self.create(name, new_link(name, link)?, &[mark, mute], operation);
        made.map_err(|error| match error.errno {
            Errno::EOPNOTSUPP => Error { reason: LACKING.into(), ..error },
            _ => error,
        })?;
        self.switch_on(name)
    }
}

/// Said where the kernel only says that it does not know the kind.
const LACKING: &str = "this kernel has no ipip devices: load module ipip, or use backend vxlan or host-gw";

fn new_link(name: &str, link: &IpipLink) -> Result<Message> {
    // As flannel has it: TTL inherited, and the outer packet may be fragmented where the inner one may (RFC 2003 section 5.1).
    let data = vec![
        InfoIpTunnel::Local(link.local.into()),
        InfoIpTunnel::Ttl(0),
        InfoIpTunnel::Tos(0),
        InfoIpTunnel::PMtuDisc(false),
    ];
    let mut body = LinkMessage::default();
    body.attributes.extend([
        LinkAttribute::IfName(valid(name)?.to_owned()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::IpIp), LinkInfo::Data(InfoData::IpTunnel(data))]),
    ]);
    Ok(Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request, byte for byte: not every kernel that runs this test has the devices.
    #[test]
    fn the_request_is_that_of_linux_if_tunnel_h() {
        let link = IpipLink { local: Ipv4Addr::new(192, 0, 2, 1), mtu: 1480 };
        let message = new_link("flannel.ipip", &link).unwrap();
        assert_eq!((message.kind, message.flags), (libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL));
        let mut expected = vec![0; 16]; // ifinfomsg: nothing is said of index, flags and type
        expected.extend([17, 0, 3, 0]); // IFLA_IFNAME
        expected.extend(b"flannel.ipip\0\0\0\0");
        expected.extend([8, 0, 4, 0, 0xc8, 5, 0, 0]); // IFLA_MTU 1480
        expected.extend([52, 0, 18, 0]); // IFLA_LINKINFO
        expected.extend([9, 0, 1, 0]); // IFLA_INFO_KIND
        expected.extend(b"ipip\0\0\0\0");
        expected.extend([36, 0, 2, 0]); // IFLA_INFO_DATA
        expected.extend([8, 0, 2, 0, 192, 0, 2, 1]); // IFLA_IPTUN_LOCAL
        expected.extend([5, 0, 4, 0, 0, 0, 0, 0]); // IFLA_IPTUN_TTL: inherit
        expected.extend([5, 0, 5, 0, 0, 0, 0, 0]); // IFLA_IPTUN_TOS
        expected.extend([5, 0, 10, 0, 0, 0, 0, 0]); // IFLA_IPTUN_PMTUDISC
        assert_eq!(message.payload, expected);
        let data = &expected[expected.len() - 32..];
        assert_eq!(IpipAttributes::decode(data), IpipAttributes { local: Some(link.local), remote: None });
        let remote = [data, &[8, 0, 3, 0, 192, 0, 2, 9]].concat();
        assert_eq!(IpipAttributes::decode(&remote).remote, Some(Ipv4Addr::new(192, 0, 2, 9)));
        // Any address is none.
        assert_eq!(IpipAttributes::decode(&[8, 0, 2, 0, 0, 0, 0, 0]), IpipAttributes::default());
    }
}
