//! TUN devices as links. They are made through a device file ([`crate::tun`]); all else is netlink.

use super::link::{LinkChange, LinkKind};
use super::{Netlink, attributes};
use crate::tun::Tun;
use crate::{Result, TunLink};

/// Of IFLA_INFO_DATA (linux/if_link.h); its value is IFF_TUN or IFF_TAP (linux/if_tun.h).
const IFLA_TUN_TYPE: u16 = 3;
const TYPE_TAP: u8 = 2;

/// Reads IFLA_INFO_DATA of a device that the kernel calls `tun`.
pub(super) fn decode(data: &[u8]) -> LinkKind {
    let is_tap = attributes(data).any(|found| found.kind() == IFLA_TUN_TYPE && found.value() == [TYPE_TAP]);
    if is_tap { LinkKind::Other("tap".into()) } else { LinkKind::Tun }
}

impl Netlink {
    /// Makes a persistent TUN device, marks it with `alias` and switches it on. It ignores router advertisements and gets no
    /// IPv6 link-local address. EBUSY if the name is that of a device which a process holds.
    pub fn create_tun(&mut self, name: &str, link: &TunLink, alias: &str) -> Result<()> {
        let held = {
            let _inside = self.enter()?;
            // Unmarked, it would be left behind by a process that is killed now.
            Tun::open_for_now(name)?
        };
        let size = LinkChange { mtu: Some(link.mtu), ..LinkChange::default() }.message_to(name)?;
        let mark = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        let mute = LinkChange { link_local: Some(false), ..LinkChange::default() };
        self.create(name, size, &[mark, mute], || format!("setting up TUN device {name}"))?;
        held.keep()?;
        drop(held);
        self.switch_on(name)
    }
}
