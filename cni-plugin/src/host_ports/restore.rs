//! The daemon's part: puts back what somebody has removed from the kernel.

use super::records::{self, Records};
use super::table::FAMILIES;
use super::{HostPorts, ensure, in_force, table};
use crate::plugin::kernel_error;
use crate::restore::Recorded;
use cni_spec::CniError;
use kernel::nft::{Family, Nft};
use std::collections::BTreeMap;
use std::time::SystemTime;

impl Recorded for HostPorts {
    fn changed(&self) -> Result<BTreeMap<String, SystemTime>, CniError> {
        Ok(records::changed(&self.directory)?.map(|changed| ("records".into(), changed)).into_iter().collect())
    }

    fn stands(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        let Some(records) = Records::open_existing(&self.directory)? else { return Ok(true) };
        let subnets = records.subnets()?;
        for family in FAMILIES.into_iter().filter(|f| subnets.iter().any(|s| s.is_ipv4() == (*f == Family::Ip))) {
            if !nft.has_frame(&table(family, [])).map_err(kernel_error)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn restore(&mut self, nft: &mut Nft) -> Result<bool, CniError> {
        let Some(records) = Records::open_existing(&self.directory)? else { return Ok(false) };
        let forwards = in_force(&records)?;
        // An empty table of ours is as good as none: the next port will be put into it.
        if forwards.is_empty() { Ok(false) } else { ensure(&forwards, nft) }
    }
}
