//! Limits in the kernel. What goes to the pod queues where it leaves the host's end of the pair. What comes from the pod
//! queues in an ifb device that everything coming in by the host's end is redirected to; at the pod's own end, where no
//! such detour was needed, the pod could remove the limit.

use super::limits::Limits;
use crate::attachment;
use cni_spec::{AttachmentId, Interface};
use kernel::netlink::{Link, Netlink};
use kernel::{Error, detached};
use nix::errno::Errno;

/// Limits the attachment `id` of `network`, whose host's end is `end`. The device that was made for it, if any. A failure
/// leaves nothing behind.
pub(crate) fn limit(
    host: &mut Netlink,
    network: &str,
    id: &AttachmentId,
    end: &Link,
    limits: &Limits,
) -> Result<Option<Interface>, Error> {
    if host.token_bucket(end)?.is_some() || host.ingress_redirection(end)?.is_some() {
        let operation = format!("limiting the bandwidth of {}", end.name);
        return Err(
            Error::new(operation, Errno::EEXIST).because("it is limited already: is bandwidth twice in the chain?")
        );
    }
    let made = build(host, network, id, end, limits);
    if made.is_err() {
        // That failure is the answer; one to undo it would only hide it.
        let _ = host.delete_token_bucket(end);
        let _ = host.delete_ingress_redirection(end);
        let _ = remove(host, network, id);
    }
    made
}

fn build(
    host: &mut Netlink,
    network: &str,
    id: &AttachmentId,
    end: &Link,
    limits: &Limits,
) -> Result<Option<Interface>, Error> {
    // The only thing that outlives the pair is made first, and carries its mark from its first moment.
    let mut device = None;
    if let Some(limit) = limits.egress {
        let ifb = make_ifb(host, network, id, end.mtu)?;
        host.add_token_bucket(&ifb, &limit.bucket(end.mtu))?;
        host.redirect_ingress(end, &ifb)?;
        let mac = ifb.mac.map(|mac| mac.to_string()).unwrap_or_default();
        device = Some(Interface { name: ifb.name, mac, ..Interface::default() });
    }
    if let Some(limit) = limits.ingress {
        host.add_token_bucket(end, &limit.bucket(end.mtu))?;
    }
    Ok(device)
}

fn make_ifb(host: &mut Netlink, network: &str, id: &AttachmentId, mtu: u32) -> Result<Link, Error> {
    let (name, alias) = (attachment::ifb(id), attachment::alias(network, id));
    // The name follows from this very attachment, which is being made: a leftover of a crash.
    remove(host, network, id)?;
    host.create_ifb(&name, mtu, &alias)?;
    host.link(&name)?.ok_or_else(|| Error::new(format!("looking up {name}, which was just made"), Errno::ENODEV))
}

/// Removes the attachment's device; false if there was none. What hangs on the pair goes with the pair. The same interface on
/// another network has a device of the same name, and is left alone.
pub(crate) fn remove(host: &mut Netlink, network: &str, id: &AttachmentId) -> Result<bool, Error> {
    match host.link(&attachment::ifb(id))? {
        Some(link) if attachment::is_of(network, &link.alias) => detached::delete_found(host, &link),
        _ => Ok(false),
    }
}

/// What is not as [`limit`] makes it.
pub(crate) fn differences(
    host: &mut Netlink,
    id: &AttachmentId,
    end: &Link,
    limits: &Limits,
) -> Result<Vec<String>, Error> {
    let mut differences = Vec::new();
    let name = attachment::ifb(id);
    let ifb = host.link(&name)?;
    let redirected = host.ingress_redirection(end)?;
    match (&ifb, limits.egress) {
        (None, None) => {}
        (None, Some(_)) => differences.push(format!("{name}, which limits what comes from the pod, is missing")),
        (Some(_), None) => {
            differences.push(format!("{name} limits what comes from the pod, which should have no limit"))
        }
        (Some(ifb), Some(_)) if redirected != Some(ifb.index) => {
            differences.push(format!("what comes in by {} is not redirected to {name}", end.name));
        }
        (Some(ifb), Some(_)) if !ifb.up => differences.push(format!("{name} is down")),
        (Some(_), Some(_)) => {}
    }
    for (device, limit) in [(ifb.as_ref(), limits.egress), (Some(end), limits.ingress)] {
        let Some(device) = device else { continue };
        let found = host.token_bucket(device)?.map(|bucket| bucket.rate * 8);
        let wanted = limit.map(|limit| limit.bucket(end.mtu).rate * 8);
        if found != wanted {
            let told = |rate: Option<u64>| rate.map_or("no limit".into(), |rate| format!("a limit of {rate} bit/s"));
            differences.push(format!("{} has {} instead of {}", device.name, told(found), told(wanted)));
        }
    }
    Ok(differences)
}
