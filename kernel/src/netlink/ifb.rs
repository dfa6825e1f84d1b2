//! Intermediate functional blocks: devices whose only purpose is a queue for packets that come in elsewhere.

use super::Netlink;
use super::link::{LinkChange, named};
use super::socket::{Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::errno::Errno;

impl Netlink {
    /// Makes an ifb device, marks it with `alias` and switches it on; `mtu` in bytes should be that of the devices whose
    /// packets it is for. It gets no IPv6 link-local address. EEXIST if the name is taken.
    pub fn create_ifb(&mut self, name: &str, mtu: u32, alias: &str) -> Result<()> {
        let operation = || format!("creating ifb {name}");
        // The steps that follow a refused creation would be carried out on the one that is there.
        if self.link(name)?.is_some() {
            return Err(Error::new(operation(), Errno::EEXIST));
        }
        let mut create = LinkMessage::default();
        create.attributes.push(named(name)?);
        create.attributes.push(LinkAttribute::Mtu(mtu));
        create.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        let create = Message::encode(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &create);
        let steps = [
            LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() },
            LinkChange { link_local: Some(false), ..LinkChange::default() },
            LinkChange { up: Some(true), ..LinkChange::default() },
        ];
        let steps = steps.iter().map(LinkChange::body).collect::<Result<_>>()?;
        self.create(name, create, steps, operation)
    }
}
