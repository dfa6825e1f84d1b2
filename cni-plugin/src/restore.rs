//! The daemon's part: puts back what somebody has removed from nftables, from what the plugins have recorded.

use crate::plugin::kernel_error;
use cni_spec::CniError;
use kernel::nft::Nft;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// A whole comparison rests for this many times as long as it took, so that on a node with thousands of pods, where they come
/// and go, it takes a twentieth of one processor at most. What a flush removes is noticed without it.
const REST: u32 = 20;

/// Records on disk that tables in the kernel are made from.
pub trait Recorded {
    /// When each part of the records last changed; empty as long as there is nothing on record, and so nothing to restore.
    ///
    /// # Errors
    /// `Io`, `Kernel`.
    fn changed(&self) -> Result<BTreeMap<String, SystemTime>, CniError>;

    /// Whether the fixed rules are all there: a look that costs the same however much is on record.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel`.
    fn stands(&mut self, nft: &mut Nft) -> Result<bool, CniError>;

    /// Brings the kernel's tables to what the records say, and tells whether they differed.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel`.
    fn restore(&mut self, nft: &mut Nft) -> Result<bool, CniError>;
}

/// Compares the kernel with the records, as rarely as that is enough.
#[derive(Debug)]
pub struct Restorer<R> {
    recorded: R,
    /// the state of records and kernel that was found to agree
    agreed: Option<(BTreeMap<String, SystemTime>, u32)>,
    resting: Option<Instant>,
}

impl<R: Recorded> Restorer<R> {
    /// For these records.
    pub fn new(recorded: R) -> Self {
        Restorer { recorded, agreed: None, resting: None }
    }

    /// Brings the kernel's tables to what the records say, and tells whether they differed. `nft` must be of the network
    /// namespace that the calling thread is in. Costs next to nothing while neither has changed, and nothing at all in the
    /// kernel as long as there is nothing on record.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel`.
    pub fn restore(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        let changed = self.recorded.changed()?;
        if changed.is_empty() {
            return Ok(false);
        }
        // Both are read before what they stand for: a change in between is seen next time.
        let state = (changed, nft.generation().map_err(kernel_error)?);
        if self.agreed.as_ref() == Some(&state) {
            return Ok(false);
        }
        let started = Instant::now();
        if self.resting.is_some_and(|until| started < until) && self.recorded.stands(nft)? {
            return Ok(false);
        }
        let repaired = self.recorded.restore(nft)?;
        self.agreed = (!repaired).then_some(state);
        self.resting = Some(Instant::now() + started.elapsed().min(Duration::from_secs(1)) * REST);
        Ok(repaired)
    }
}
