//! Intermediate functional blocks: devices whose only purpose is a queue for packets that come in elsewhere.

use super::Netlink;
use super::attribute::Attributes;
use super::link::{Body, LinkChange};
use super::socket::{NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};
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
        let create = LinkChange { mtu: Some(mtu), ..LinkChange::default() }.applied_to(Body::named(name)?)?;
        let create = create.of_kind("ifb", Attributes::new()).message(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        let steps = [
            LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() },
            LinkChange { link_local: Some(false), ..LinkChange::default() },
            LinkChange { up: Some(true), ..LinkChange::default() },
        ];
        self.create(name, create, &steps, operation)
    }
}
