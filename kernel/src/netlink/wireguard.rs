//! Devices of the kernel's WireGuard as links; keys and peers are set in [`crate::wireguard`].

use super::Netlink;
use super::link::{LinkChange, valid};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Result, WireGuardLink};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

impl Netlink {
    /// Makes a WireGuard device without keys or peers, marks it with `alias` and switches it on. It gets no IPv6 link-local
    /// address. EEXIST if the name is taken, EOPNOTSUPP if the kernel has no such devices.
    pub fn create_wireguard(&mut self, name: &str, link: &WireGuardLink, alias: &str) -> Result<()> {
        let mark = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        let mute = LinkChange { link_local: Some(false), ..LinkChange::default() };
        let operation = || format!("creating wireguard {name}");
        self.create(name, new_link(name, link)?, &[mark, mute], operation)?;
        self.switch_on(name)
    }
}

fn new_link(name: &str, link: &WireGuardLink) -> Result<Message> {
    let mut body = LinkMessage::default();
    body.attributes.extend([
        LinkAttribute::IfName(valid(name)?.to_owned()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ]);
    Ok(Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request, byte for byte: not every kernel that runs this test has the devices.
    #[test]
    fn the_request_names_the_kind() {
        let message = new_link("flannel-wg", &WireGuardLink { mtu: 1440 }).unwrap();
        let mut expected = vec![0; 16]; // ifinfomsg: nothing is said of index, flags and type
        expected.extend([15, 0, 3, 0]); // IFLA_IFNAME
        expected.extend(b"flannel-wg\0\0");
        expected.extend([8, 0, 4, 0, 0xa0, 5, 0, 0]); // IFLA_MTU 1440
        expected.extend([20, 0, 18, 0]); // IFLA_LINKINFO
        expected.extend([14, 0, 1, 0]); // IFLA_INFO_KIND
        expected.extend(b"wireguard\0\0\0");
        assert_eq!((message.kind, message.payload), (libc::RTM_NEWLINK, expected));
    }
}
