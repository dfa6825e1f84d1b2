//! The one teardown, which serves DEL, GC and a failed ADD: idempotent, goes on after failures, and takes "already gone"
//! for success.

use crate::attachments::{Attachments, Part};
use crate::bandwidth::shaper;
use crate::host_ports::HostPorts;
use crate::plugin::kernel_error;
use crate::{attachment, guard, masquerade};
use cni_spec::{AttachmentId, CniError};
use kernel::netlink::{LinkKind, Netlink};
use kernel::netns::Netns;
use kernel::{Error, detached};
use nix::errno::Errno;
use std::net::IpAddr;
use std::path::Path;

/// What is left of an attachment in the kernel: ports of the host that lead to it, the host's neighbour entries for
/// `addresses`, the queue for what it sends, the veth pair by its host end, whatever pair has its pod's end in `netns`, and
/// what it has in nftables. The addresses themselves are released by the caller, last, so that nobody is given an address that still
/// leads somewhere.
pub(crate) struct Remains<'a> {
    pub(crate) id: &'a AttachmentId,
    pub(crate) network: &'a str,
    pub(crate) netns: Option<&'a Path>,
    /// where the neighbour entries are if there is no host end any more to tell; without a bridge they went with it
    pub(crate) bridge: Option<&'a str>,
    pub(crate) addresses: &'a [IpAddr],
    /// ports of the host that lead to it, unless a chained plugin sees to them
    pub(crate) ports: Option<&'a HostPorts>,
    /// where it is recorded
    pub(crate) attachments: &'a Attachments,
}

impl Remains<'_> {
    /// Removes them all.
    pub(crate) fn remove(&self) -> Result<(), CniError> {
        let mut failures = Failures::default();
        match self.remove_from_host(&mut failures) {
            // The pair went with its host end, or it is not ours.
            Ok(Removed::NotOurs | Removed::Pair) => {}
            outcome => {
                failures.note(outcome);
                if let Some(netns) = self.netns {
                    failures.note(remove_from_sandbox(netns, &self.id.ifname));
                }
            }
        }
        failures.note_cni(self.remove_elements());
        failures.into_result()
    }

    fn remove_elements(&self) -> Result<(), CniError> {
        let searched = [masquerade::table(self.network), guard::table()];
        self.attachments.withdraw(Part::Interface, self.network, self.id, &searched)
    }

    fn remove_from_host(&self, failures: &mut Failures) -> Result<Removed, Error> {
        let mut host = Netlink::open()?;
        let link = host.link(&attachment::host_veth(self.id))?;
        if link.as_ref().is_some_and(|link| attachment::is_of_another(self.network, &link.alias)) {
            // The same interface name on another network: so the interface in the sandbox is that network's.
            return Ok(Removed::NotOurs);
        }
        // First, so that nobody is led to where nobody is.
        failures.note_cni(self.ports.map_or(Ok(()), |ports| ports.withdraw(self.id)));
        let link = link.filter(|link| attachment::is_of(self.network, &link.alias));
        failures.note(self.forget_neighbours(&mut host, link.as_ref().and_then(|link| link.master)));
        failures.note(shaper::remove(&mut host, self.network, self.id));
        match link {
            Some(link) => detached::delete_found(&mut host, &link).map(|_| Removed::Pair),
            None => Ok(Removed::Nothing),
        }
    }

    fn forget_neighbours(&self, host: &mut Netlink, bridge: Option<u32>) -> Result<(), Error> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let bridge = match bridge {
            Some(index) => index,
            None => match self.bridge.map(|bridge| host.link(bridge)).transpose()?.flatten() {
                Some(bridge) => bridge.index,
                None => return Ok(()),
            },
        };
        self.addresses.iter().map(|address| host.delete_neighbour(bridge, *address).map(drop)).fold(Ok(()), Result::and)
    }
}

enum Removed {
    Pair,
    Nothing,
    NotOurs,
}

/// Removes the pair whose end is `ifname` in a sandbox that still exists. A pod of the reference plugins has a host end
/// with a random name, but the pair goes with either end.
fn remove_from_sandbox(netns: &Path, ifname: &str) -> Result<(), Error> {
    let netns = match Netns::open(netns) {
        Ok(netns) => netns,
        // A namespace that is gone has taken its interfaces with it; its file may stay behind, without it.
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL) => return Ok(()),
        Err(error) => return Err(error),
    };
    if netns.id() == Netns::current()?.id() {
        return Ok(());
    }
    let mut pod = Netlink::open_in(&netns)?;
    match pod.link(ifname)? {
        Some(link) if link.kind == LinkKind::Veth => detached::delete_found(&mut pod, &link).map(drop),
        _ => Ok(()),
    }
}

/// Failures of a teardown that goes on: the first is reported, with the number of the others.
#[derive(Default)]
pub(crate) struct Failures {
    first: Option<CniError>,
    others: usize,
}

impl Failures {
    /// Takes note of a kernel step's outcome.
    pub(crate) fn note<T>(&mut self, outcome: Result<T, Error>) {
        self.note_cni(outcome.map_err(kernel_error));
    }

    /// Takes note of a step's outcome.
    pub(crate) fn note_cni<T>(&mut self, outcome: Result<T, CniError>) {
        if let Err(error) = outcome {
            match self.first {
                None => self.first = Some(error),
                Some(_) => self.others += 1,
            }
        }
    }

    /// Success if nothing failed.
    pub(crate) fn into_result(self) -> Result<(), CniError> {
        match self.first {
            None => Ok(()),
            Some(first) if self.others == 0 => Err(first),
            Some(first) => Err(CniError { msg: format!("{} (and {} more failures)", first.msg, self.others), ..first }),
        }
    }
}
