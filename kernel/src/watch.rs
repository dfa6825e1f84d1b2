//! Waiting for the kernel's configuration to change. A notification says that something changed, never what: *events wake,
//! state decides*. Contents are not kept, so a flood of changes costs no memory, and a lost notification costs nothing. They
//! are looked at only to tell whether they are news at all, since our own changes come back as notifications too.
//!
//! Sockets of our own, because the rtnetlink crate queues each message in memory without a bound, and knows no nftables.

mod meaning;

pub use meaning::{Expected, Wake};

use crate::netlink::socket::netlink_socket;
use crate::netns::Netns;
use crate::{Error, Result};
use meaning::{of_nftables, of_route};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, bind, recv};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Multicast groups of rtnetlink (linux/rtnetlink.h: RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE,
/// IPV4_NETCONF, IPV6_NETCONF).
const ROUTE_GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUPS: [u32; 1] = [7];
/// What follows the first notification within this time belongs to the same change.
const SETTLE: Duration = Duration::from_millis(10);
/// Beyond this many datagrams in one go the others on this thread get their turn.
const DRAIN: usize = 1024;
const HEADER: usize = 16;

/// Listens to the changes of one network namespace. Dropping it ends the listening; there is no task behind it.
#[derive(Debug)]
pub struct Watch {
    route: AsyncFd<OwnedFd>,
    nftables: AsyncFd<OwnedFd>,
    /// seen, but not returned yet: a caller may drop the future of [`Watch::changed`] halfway
    pending: Wake,
}

impl Watch {
    /// Listens in the namespace that the calling thread is in; changes from now on are seen. To be called inside a
    /// tokio runtime with I/O and time.
    pub fn open() -> Result<Self> {
        Ok(Watch {
            route: listen(SockProtocol::NetlinkRoute, &ROUTE_GROUPS, "links, addresses, routes and neighbours")?,
            nftables: listen(SockProtocol::NetlinkNetFilter, &NFTABLES_GROUPS, "nftables")?,
            pending: Wake::default(),
        })
    }

    /// Listens in `namespace`.
    pub fn open_in(namespace: &Netns) -> Result<Self> {
        let _inside = namespace.enter()?;
        Watch::open()
    }

    /// Waits until something changed and 10 ms more, so that a burst is one answer. Notifications that the kernel had to drop
    /// count as a change of everything. It is safe to drop the future: the change is told by the next call.
    pub async fn changed(&mut self) -> Result<Wake> {
        self.news(None).await
    }

    /// The same, of what is no piece of the state that is in place anyway.
    pub async fn deviated(&mut self, expected: &Expected<'_>) -> Result<Wake> {
        self.news(Some(expected)).await
    }

    async fn news(&mut self, expected: Option<&Expected<'_>>) -> Result<Wake> {
        while self.pending.is_empty() {
            tokio::select! {
                wake = next(&self.route, of_route, expected) => self.pending.merge(wake?),
                wake = next(&self.nftables, of_nftables, expected) => self.pending.merge(wake?),
            }
        }
        tokio::time::sleep(SETTLE).await;
        self.pending.merge(drain(&self.route, of_route, expected)?.0);
        self.pending.merge(drain(&self.nftables, of_nftables, expected)?.0);
        Ok(std::mem::take(&mut self.pending))
    }
}

/// What the messages of one socket mean.
type Meaning = fn(kind: u16, payload: &[u8], expected: Option<&Expected<'_>>) -> Wake;

/// Waits until there is something to read, and reads it.
async fn next(socket: &AsyncFd<OwnedFd>, meaning: Meaning, expected: Option<&Expected<'_>>) -> Result<Wake> {
    let failed = |error: std::io::Error| Error::io("waiting for netlink notifications", &error);
    // Errors are readiness of their own kind: lost notifications are told as one.
    let mut ready = socket.ready(Interest::READABLE | Interest::ERROR).await.map_err(failed)?;
    let (wake, emptied) = drain(socket, meaning, expected)?;
    if emptied {
        ready.clear_ready();
    }
    Ok(wake)
}

/// Reads what is there, up to a bound, and tells whether it was all.
fn drain(socket: &AsyncFd<OwnedFd>, meaning: Meaning, expected: Option<&Expected<'_>>) -> Result<(Wake, bool)> {
    let mut wake = Wake::default();
    // Larger datagrams are cut: what matters comes first in them.
    let mut buffer = [0; 8192];
    for _datagram in 0..DRAIN {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => wake.merge(meanings(buffer.get(..length).unwrap_or_default(), meaning, expected)),
            Err(Errno::EAGAIN) => return Ok((wake, true)),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => {
                wake.merge(Wake::EVERYTHING);
            }
            Err(errno) => return Err(Error::new("reading netlink notifications", errno)),
        }
    }
    Ok((wake, false))
}

fn meanings(datagram: &[u8], meaning: Meaning, expected: Option<&Expected<'_>>) -> Wake {
    let mut wake = Wake::default();
    let mut rest = datagram;
    while let Some([a, b, c, d, e, f]) = rest.first_chunk() {
        let length = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
        let payload = rest.get(HEADER..length.min(rest.len())).unwrap_or_default();
        wake.merge(meaning(u16::from_ne_bytes([*e, *f]), payload, expected));
        rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    wake
}

fn listen(protocol: SockProtocol, groups: &[u32], what: &str) -> Result<AsyncFd<OwnedFd>> {
    let failed = |errno| Error::new(format!("listening to changes of {what}"), errno);
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let fd = netlink_socket(protocol).map_err(failed)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, mask)).map_err(failed)?;
    // SAFETY: the descriptor is open, and stays so and the same as long as the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| Error::io(format!("listening to changes of {what}"), &error.into()))
}
