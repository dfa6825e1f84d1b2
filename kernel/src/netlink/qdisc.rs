//! Queueing disciplines: the token bucket that limits what leaves a device, and the hook for what comes in by it.

use super::socket::{NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use super::tc::{self, Described, Place};
use super::{Link, Netlink};
use crate::Result;
use nix::errno::Errno;

// linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TBF: &str = "tbf";
/// The kernel tells times in ticks of 64 ns (PSCHED_SHIFT in net/pkt_sched.h).
const NANOSECONDS_PER_TICK: u128 = 64;

/// A token bucket filter (tc-tbf(8)). All sizes count whole Ethernet frames without preamble and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// bytes per second, at least 1
    pub rate: u64,
    /// bytes that may leave at once after a pause, at most 274 seconds worth (32 bits of the kernel's ticks). A frame that
    /// is larger never leaves.
    pub burst: u32,
    /// bytes that may wait in the queue; what does not fit is dropped
    pub limit: u32,
}

impl Netlink {
    /// Limits what leaves `device`. EEXIST if something other than the default queues there already.
    pub fn add_token_bucket(&mut self, device: &Link, bucket: &TokenBucket) -> Result<()> {
        let attributes = [tc::kind(TBF), tc::options(&bucket.options())];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let message = tc::message(libc::RTM_NEWQDISC, flags, device.index, Place::Egress, 0, &attributes);
        self.request(message, || format!("limiting {} to {} bit/s by tbf", device.name, u128::from(bucket.rate) * 8))
    }

    /// The token bucket of `device`, or None where there is another queue, or the default one.
    pub fn token_bucket(&mut self, device: &Link) -> Result<Option<TokenBucket>> {
        // The answer is a notification, which the one who asks gets if it wants its own echoed. Of the default queues nothing is
        // told (tc_qdisc_dump_ignore in net/sched/sch_api.c): only the acknowledgement comes, or EINVAL from older kernels.
        let message = tc::message(libc::RTM_GETQDISC, NLM_F_ACK | NLM_F_ECHO, device.index, Place::Egress, 0, &[]);
        let operation = || format!("looking up the queue of {}", device.name);
        match self.query(message, operation, |payload| Some(decode(payload))) {
            Ok(found) => Ok(found.into_iter().flatten().next()),
            Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the queue that was set on `device`; false if it has only the default.
    pub fn delete_token_bucket(&mut self, device: &Link) -> Result<bool> {
        self.delete_queue(device, Place::Egress, TBF)
    }

    /// Opens the hook for filters on what comes in by `device`. EEXIST if it is open.
    pub(super) fn add_ingress(&mut self, device: &Link) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let message = tc::message(libc::RTM_NEWQDISC, flags, device.index, Place::Ingress, 0, &[tc::kind("ingress")]);
        self.request(message, || format!("opening {} for ingress filters", device.name))
    }

    /// Closes it, with all filters on it; false if it was not open.
    pub(super) fn delete_ingress(&mut self, device: &Link) -> Result<bool> {
        self.delete_queue(device, Place::Ingress, "ingress")
    }

    fn delete_queue(&mut self, device: &Link, place: Place, kind: &str) -> Result<bool> {
        let message = tc::message(libc::RTM_DELQDISC, 0, device.index, place, 0, &[tc::kind(kind)]);
        // EINVAL: what is there is of another kind, or of none; ENODEV: the device is gone.
        let gone = [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV];
        self.request_unless(message, &gone, || format!("removing the {kind} queue of {}", device.name))
    }
}

impl TokenBucket {
    fn options(&self) -> [Vec<u8>; 3] {
        // Rates from 4 GiB/s on go in an attribute of their own, and this says so.
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        // struct tc_tbf_qopt: two tc_ratespec (the second, for a peak rate, is none), limit, buffer, mtu. The link layer is
        // named so that the kernel computes times by itself instead of asking for a table; the burst follows in bytes.
        let mut parameters = rate_specification(TC_LINKLAYER_ETHERNET, rate).to_vec();
        parameters.extend(rate_specification(0, 0));
        for number in [self.limit, 0, 0] {
            parameters.extend_from_slice(&number.to_ne_bytes());
        }
        [
            tc::attribute(TCA_TBF_PARMS, &parameters),
            tc::attribute(TCA_TBF_BURST, &self.burst.to_ne_bytes()),
            tc::attribute(TCA_TBF_RATE64, &self.rate.to_ne_bytes()),
        ]
    }
}

/// struct tc_ratespec without a table, overhead or minimum size.
fn rate_specification(link_layer: u8, rate: u32) -> [u8; 12] {
    let mut bytes = [0, link_layer, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[8..].copy_from_slice(&rate.to_ne_bytes());
    bytes
}

pub(super) fn decode(payload: &[u8]) -> Option<TokenBucket> {
    let queue = Described::read(payload)?;
    if queue.kind != TBF.as_bytes() || !queue.is_at(Place::Egress) {
        return None;
    }
    let parameters = tc::find(queue.options, TCA_TBF_PARMS)?;
    let rate = match tc::find(queue.options, TCA_TBF_RATE64) {
        Some(bytes) => u64::from_ne_bytes(*bytes.first_chunk()?),
        None => u64::from(tc::number(parameters, 8)?),
    };
    let ticks = u128::from(tc::number(parameters, 28)?);
    // The kernel keeps the burst as the time that it takes; both steps round down.
    let burst = (ticks * NANOSECONDS_PER_TICK * u128::from(rate)).div_ceil(1_000_000_000);
    Some(TokenBucket { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: tc::number(parameters, 24)? })
}
