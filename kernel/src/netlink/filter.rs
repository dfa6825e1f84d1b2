//! Filters: what comes in by one device is sent through another.

use super::socket::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use super::tc::{self, Described, Place};
use super::{Link, Netlink};
use crate::Result;

// linux/pkt_cls.h, linux/tc_act/tc_mirred.h
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
/// Priority 1 of all protocols (ETH_P_ALL, in network order).
const FIRST_OF_ALL: u32 = (1 << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;

impl Netlink {
    /// Sends everything that comes in by `from` through `to`, before anything else sees it; from an ifb device it comes
    /// back as if nothing had been. EEXIST, with nothing changed, if `from` has ingress filters already.
    pub fn redirect_ingress(&mut self, from: &Link, to: &Link) -> Result<()> {
        self.add_ingress(from)?;
        let attributes = [tc::kind("u32"), tc::options(&[everything(), redirection(to.index)])];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let place = Place::IngressFilters;
        let message = tc::message(libc::RTM_NEWTFILTER, flags, from.index, place, FIRST_OF_ALL, &attributes);
        let redirected = self.request(message, || format!("redirecting what comes in by {} to {}", from.name, to.name));
        if redirected.is_err() {
            // The hook was ours a moment ago.
            let _ = self.delete_ingress(from);
        }
        redirected
    }

    /// Index of the device that everything coming in by `from` is sent through, or None. A device that is gone may be named.
    pub fn ingress_redirection(&mut self, from: &Link) -> Result<Option<u32>> {
        let message = tc::message(libc::RTM_GETTFILTER, NLM_F_DUMP, from.index, Place::IngressFilters, 0, &[]);
        let operation = || format!("listing the ingress filters of {}", from.name);
        let found =
            self.query(message, operation, |payload| decode(payload).filter(|(index, _)| *index == from.index))?;
        Ok(found.first().map(|(_, to)| *to))
    }

    /// Removes all ingress filters of `device`; false if there was none.
    pub fn delete_ingress_redirection(&mut self, device: &Link) -> Result<bool> {
        self.delete_ingress(device)
    }
}

/// struct tc_u32_sel with one key that every packet matches: no bit of the first word is looked at.
fn everything() -> Vec<u8> {
    let mut selector = vec![TC_U32_TERMINAL, 0, 1, 0];
    // Offsets and a hash mask that play no part (12 bytes), and struct tc_u32_key: mask, value, offset, its mask.
    selector.resize(16 + 16, 0);
    tc::attribute(TCA_U32_SEL, &selector)
}

/// The first action: mirred, struct tc_mirred {index, capab, action, refcnt, bindcnt, eaction, ifindex}.
fn redirection(to: u32) -> Vec<u8> {
    let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to].map(u32::to_ne_bytes).concat();
    let options = tc::attribute(TCA_ACT_OPTIONS, &tc::attribute(TCA_MIRRED_PARMS, &parameters));
    let action = [tc::attribute(TCA_ACT_KIND, b"mirred\0"), options].concat();
    tc::attribute(TCA_U32_ACT, &tc::attribute(1, &action))
}

/// The device that has the filter, and the one that it redirects everything to.
pub(super) fn decode(payload: &[u8]) -> Option<(u32, u32)> {
    let filter = Described::read(payload)?;
    if filter.kind != b"u32" || !filter.is_at(Place::IngressFilters) {
        return None;
    }
    // One selector for everything: a filter that looks at anything does not redirect everything.
    let selector = tc::find(filter.options, TCA_U32_SEL)?;
    let keys = usize::from(*selector.get(2)?);
    if selector.get(16..)?.chunks_exact(16).take(keys).any(|key| key[..4] != [0; 4]) {
        return None;
    }
    let action = tc::find(tc::find(filter.options, TCA_U32_ACT)?, 1)?;
    let parameters = tc::find(tc::find(action, TCA_ACT_OPTIONS)?, TCA_MIRRED_PARMS)?;
    let redirects = tc::find(action, TCA_ACT_KIND)?.starts_with(b"mirred")
        && tc::number(parameters, 20)? == TCA_EGRESS_REDIR
        && tc::number(parameters, 8)? == TC_ACT_STOLEN;
    redirects.then_some((filter.index, tc::number(parameters, 24)?))
}
