//! What the machine tells about who may be alive.

use kernel::netlink::{LinkKind, Netlink};
use kernel::netns::for_each_living;
use kernel::sysctl;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Time since boot. It never jumps, unlike the wall clock; what an earlier boot recorded appears to lie in the future.
pub(super) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// The id of this boot, which no other boot has: random(4).
pub(super) fn boot_id() -> Option<String> {
    #[cfg(test)]
    if let Some(fake) = super::tests::world::boot_id() {
        return Some(fake);
    }
    sysctl::get("kernel.random.boot_id").ok()
}

/// The earliest that a clock can have shown in this boot. What a file says that is older was written before.
///
/// The time since boot alone does not do: a clock that was set forward in the meantime (no battery, a virtual machine that
/// was suspended) would make what was written before that look as if it were of an earlier boot. /proc was mounted before
/// there was any pod, and keeps the time that the clock showed then. Of a clock that was set back the other one is right.
pub(super) fn earliest() -> Option<SystemTime> {
    let counted = SystemTime::now().checked_sub(since_boot())?;
    let seen = fs::metadata("/proc").and_then(|metadata| metadata.modified()).ok()?;
    Some(counted.min(seen))
}

/// What somebody wants to know of everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// who there is
    Names,
    /// also under which addresses. For each of them the kernel has to be asked in turn with whoever configures interfaces,
    /// on the whole machine: on a busy one that takes long.
    Addresses,
}

/// What is alive.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    /// names of the network namespaces
    pub(super) namespaces: BTreeSet<String>,
    /// addresses on their links
    pub(super) addresses: BTreeSet<IpAddr>,
    /// addresses that the node knows the way to: machines behind a pod's interface have theirs on no link
    pub(super) neighbours: BTreeSet<IpAddr>,
    /// aliases of the node's veths, which tell whose they are
    pub(super) marks: BTreeSet<String>,
}

impl Survey {
    /// Looks at the whole machine, which takes a system call for each thread, open file and mount of it, and some for each
    /// network namespace.
    pub(super) fn take(depth: Depth) -> kernel::Result<Self> {
        #[cfg(test)]
        if let Some(fake) = super::tests::world::survey() {
            return Ok(fake);
        }
        let mut survey = Survey::default();
        for_each_living(&mut |netns| {
            survey.namespaces.insert(netns.name()?);
            if depth == Depth::Addresses {
                let found = Netlink::open_in(netns)?.addresses()?;
                survey.addresses.extend(found.iter().map(|(_, address)| address.ip()));
            }
            Ok(())
        })?;
        // Last: an end of a pair that is still here is a namespace that was missed.
        let mut host = Netlink::open()?;
        if depth == Depth::Addresses {
            let known = host.neighbours(None)?.into_iter().filter(|neighbour| neighbour.mac.is_some());
            survey.neighbours.extend(known.map(|neighbour| neighbour.ip));
        }
        let veths = host.links()?.into_iter().filter(|link| link.kind == LinkKind::Veth);
        survey.marks.extend(veths.map(|link| link.alias).filter(|alias| !alias.is_empty()));
        Ok(survey)
    }
}
