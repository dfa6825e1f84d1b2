//! Bridges.

use super::Netlink;
use super::attribute::Attributes;
use super::link::{Body, LinkChange};
use super::socket::{NLM_F_CREATE, NLM_F_EXCL};
use crate::{Mac, Result};

// linux/if_link.h
pub(super) const IFLA_BRPORT_MODE: u16 = 4;
pub(super) const IFLA_BRPORT_ISOLATED: u16 = 33;

impl Netlink {
    /// Makes a bridge and switches it on. Its hardware address stays `mac`; without a given one the kernel would change
    /// it with every port that comes and goes. EEXIST if the name is taken.
    pub fn create_bridge(&mut self, name: &str, mac: Mac, mtu: Option<u32>, alias: &str) -> Result<()> {
        let change = LinkChange { up: Some(true), mac: Some(mac), mtu, ..LinkChange::default() };
        let create = change.applied_to(Body::named(name)?)?.of_kind("bridge", Attributes::new());
        let create = create.message(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        let finish = LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() };
        self.create(name, create, &[finish], || format!("creating bridge {name}"))
    }
}
