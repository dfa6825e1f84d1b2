//! What the kernel finishes by itself, a moment after it was told: until then the first packet is lost, and sent again a
//! second later.

use kernel::Result;
use kernel::netlink::{Netlink, RouteKind};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long the kernel may take; it may put off its link watch for a second. What takes longer (a bridge with the spanning
/// tree protocol) is no reason to give up the pod.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(100);

/// Waits until a link carries packets. The carrier comes with the peer, or with the first port of a bridge, but it takes the
/// kernel's link watch to open the bridge port and to start sending. Since Linux 6.8 looking at the link does that work.
pub(crate) fn await_carrier(netlink: &mut Netlink, name: &str) -> Result<()> {
    wait(|| Ok(netlink.link(name)?.is_none_or(|link| link.running)))
}

/// Waits until what is sent to `address` is received, which takes a route in the local table. IPv4 has it at once, IPv6 when
/// a work queue of the kernel has run (`addrconf_dad_work`, also where no duplicate is looked for).
pub(crate) fn await_reception(netlink: &mut Netlink, address: IpAddr) -> Result<()> {
    if address.is_ipv4() {
        return Ok(());
    }
    // Until then it may have no route at all, which is an error.
    wait(|| Ok(netlink.lookup(address).is_ok_and(|route| route.kind == RouteKind::Local)))
}

fn wait(mut is_ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_ready()? && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
