//! The one teardown, which serves DEL, GC and a failed ADD: idempotent, goes on after failures, and takes "already gone"
//! for success.

use crate::attachment;
use crate::bridge::kernel_error;
use cni_spec::{AttachmentId, CniError};
use kernel::netlink::{LinkKind, Netlink};
use kernel::netns::Netns;
use kernel::{Error, detached};
use std::net::IpAddr;
use std::path::Path;

/// What is left of an attachment in the kernel: the host's neighbour entries for `addresses` on `bridge`, the veth pair by
/// its host end, and whatever pair has its pod's end in `netns`. The addresses themselves are released by the caller,
/// last, so that nobody is given an address that still leads somewhere.
pub(crate) struct Remains<'a> {
    pub(crate) id: &'a AttachmentId,
    pub(crate) netns: Option<&'a Path>,
    pub(crate) bridge: &'a str,
    pub(crate) addresses: &'a [IpAddr],
}

impl Remains<'_> {
    /// Removes them all.
    pub(crate) fn remove(&self) -> Result<(), CniError> {
        let mut failures = Failures::default();
        match Netlink::open() {
            Ok(mut host) => {
                failures.note(self.forget_neighbours(&mut host));
                failures.note(detached::delete_link(&mut host, &attachment::host_veth(self.id)));
            }
            Err(error) => failures.note(Err::<(), _>(error)),
        }
        if let Some(netns) = self.netns {
            failures.note(remove_from_sandbox(netns, &self.id.ifname));
        }
        failures.into_result()
    }

    fn forget_neighbours(&self, host: &mut Netlink) -> Result<(), Error> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let Some(bridge) = host.link(self.bridge)? else { return Ok(()) };
        self.addresses
            .iter()
            .map(|address| host.delete_neighbour(bridge.index, *address).map(drop))
            .fold(Ok(()), Result::and)
    }
}

/// Removes the pair whose end is `ifname` in a sandbox that still exists. A pod of the reference plugins has a host end
/// with a random name, but the pair goes with either end.
fn remove_from_sandbox(netns: &Path, ifname: &str) -> Result<(), Error> {
    // A namespace that is gone has taken its interfaces with it.
    let Ok(netns) = Netns::open(netns) else { return Ok(()) };
    if netns.id() == Netns::current()?.id() {
        return Ok(());
    }
    let mut pod = Netlink::open_in(&netns)?;
    match pod.link(ifname)? {
        Some(link) if link.kind == LinkKind::Veth => detached::delete_link(&mut pod, ifname).map(drop),
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
