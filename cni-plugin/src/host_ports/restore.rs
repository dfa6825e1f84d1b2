//! The daemon's part: puts back what somebody has removed from the kernel.

use super::records::{self, Records};
use super::table::FAMILIES;
use super::{HostPorts, ensure, in_force, table};
use crate::plugin::kernel_error;
use cni_spec::CniError;
use kernel::nft::{Family, Nft};
use std::time::{Duration, Instant, SystemTime};

/// A whole comparison rests for this many times as long as it took, so that on a node with thousands of ports, where pods
/// come and go, it takes a twentieth of one processor at most. What a flush removes is noticed without it.
const REST: u32 = 20;

/// Compares the kernel with the records, as rarely as that is enough.
#[derive(Debug)]
pub struct Restorer {
    ports: HostPorts,
    /// the state of records and kernel that was found to agree
    agreed: Option<(SystemTime, u32)>,
    resting: Option<Instant>,
}

impl Restorer {
    /// For these ports.
    pub fn new(ports: HostPorts) -> Self {
        Restorer { ports, agreed: None, resting: None }
    }

    /// Brings the kernel's tables to what the records say, and tells whether they differed. `nft` must be of the network
    /// namespace that the calling thread is in. Costs next to nothing while neither has changed, and nothing at all in the
    /// kernel as long as no port was ever used.
    ///
    /// # Errors
    /// `Io`, `TryAgain`, `Kernel`.
    pub fn restore(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        let Some(changed) = records::changed(&self.ports.directory)? else { return Ok(false) };
        // Both are read before what they stand for: a change in between is seen next time.
        let state = (changed, nft.generation().map_err(kernel_error)?);
        if self.agreed == Some(state) {
            return Ok(false);
        }
        let started = Instant::now();
        let resting = self.resting.is_some_and(|until| started < until);
        let Some(records) = Records::open_existing(&self.ports.directory)? else { return Ok(false) };
        if resting && frames_stand(&records, nft)? {
            return Ok(false);
        }
        let forwards = in_force(&records)?;
        // An empty table of ours is as good as none: the next port will be put into it.
        let repaired = if forwards.is_empty() { false } else { ensure(&forwards, nft)? };
        self.agreed = (!repaired).then_some(state);
        self.resting = Some(Instant::now() + started.elapsed().min(Duration::from_secs(1)) * REST);
        Ok(repaired)
    }
}

/// Whether the fixed rules are all there, for the families that have a port.
fn frames_stand(records: &Records, nft: &mut Nft) -> Result<bool, CniError> {
    let subnets = records.subnets()?;
    for family in FAMILIES.into_iter().filter(|f| subnets.iter().any(|s| s.is_ipv4() == (*f == Family::Ip))) {
        if !nft.has_frame(&table(family, [])).map_err(kernel_error)? {
            return Ok(false);
        }
    }
    Ok(true)
}
