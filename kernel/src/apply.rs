//! Carrying out changes.

use crate::netlink::socket::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use crate::netlink::{
    LinkChange, Netlink, RouteKind, RouteSpec, add_address_message, delete_address_message, delete_fdb_message,
    delete_neighbour_message, delete_route_message, refused, route_message, set_fdb_message, set_neighbour_message,
};
use crate::{Change, Error, LINK_ALIAS, REFUSAL_METRIC, Route, StrayRoute};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use std::collections::BTreeMap;

/// As many as gain something from sharing a system call, and few enough for their acknowledgements to fit in the socket.
const BATCH: usize = 64;

/// Carries out the changes in their order. Each stands for itself: what fails is returned, and the others go on. What is
/// done already is no failure. Of many changes on a device that does not exist, the first is reported.
pub fn apply(netlink: &mut Netlink, changes: &[Change]) -> Vec<Error> {
    let mut work = Work { netlink, devices: BTreeMap::new(), batch: Vec::with_capacity(BATCH), failures: Vec::new() };
    for change in changes {
        work.carry_out(change);
    }
    work.flush();
    work.failures
}

struct Work<'a> {
    netlink: &'a mut Netlink,
    /// index by name, as far as they were asked for; None: missing, and reported
    devices: BTreeMap<String, Option<u32>>,
    batch: Vec<(&'a Change, Message)>,
    failures: Vec<Error>,
}

impl<'a> Work<'a> {
    fn carry_out(&mut self, change: &'a Change) {
        let message = match change {
            Change::DeleteLink(..) | Change::CreateLink(..) | Change::UpdateLink(..) | Change::SetTxChecksum(..) => {
                self.flush();
                return self.change_link(change);
            }
            // No route of others has this metric.
            Change::SetRefusal(dst, how) => Some(route_message(&refusal(*dst, *how), NLM_F_CREATE | NLM_F_REPLACE)),
            Change::DeleteRefusal(dst, how) => Some(delete_route_message(&refusal(*dst, *how))),
            Change::DeleteRoute(dst, route) => {
                self.device(&route.dev, change).map(|dev| delete_route_message(&spec(*dst, route, dev)))
            }
            Change::DeleteStray(stray) => self.delete_stray(stray, change),
            Change::DeleteFdb(dev, mac, dst) => self.device(dev, change).map(|dev| delete_fdb_message(dev, *mac, *dst)),
            Change::DeleteNeighbour(dev, ip) => self.device(dev, change).map(|dev| delete_neighbour_message(dev, *ip)),
            Change::DeleteAddress(dev, address) => {
                self.device(dev, change).map(|dev| delete_address_message(dev, *address))
            }
            Change::AddAddress(dev, address) => self.device(dev, change).map(|dev| add_address_message(dev, *address)),
            Change::SetNeighbour(dev, ip, mac) => {
                self.device(dev, change).map(|dev| set_neighbour_message(dev, *ip, *mac))
            }
            Change::SetFdb(dev, mac, dst) => self.device(dev, change).map(|dev| set_fdb_message(dev, *mac, *dst)),
            // Not replacing what is there: a peer that claims the prefix of somebody's route must not cut it off.
            Change::AddRoute(dst, route) => self
                .device(&route.dev, change)
                .map(|dev| route_message(&spec(*dst, route, dev), NLM_F_CREATE | NLM_F_EXCL)),
            Change::ReplaceRoute(dst, route) => self
                .device(&route.dev, change)
                .map(|dev| route_message(&spec(*dst, route, dev), NLM_F_CREATE | NLM_F_REPLACE)),
        };
        self.batch.extend(message.map(|message| (change, message)));
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn delete_stray(&mut self, stray: &StrayRoute, change: &Change) -> Option<Message> {
        let dev = match &stray.dev {
            Some(name) => Some(self.device(name, change)?),
            None => None,
        };
        Some(delete_route_message(&RouteSpec {
            dst: stray.dst,
            via: stray.via,
            dev,
            protocol: stray.protocol,
            metric: stray.metric,
            kind: stray.kind,
            ..RouteSpec::default()
        }))
    }

    fn change_link(&mut self, change: &Change) {
        let done = match change {
            Change::DeleteLink(name) => {
                self.devices.remove(name);
                self.netlink.delete_link(name).map(drop)
            }
            Change::CreateLink(name, link) => {
                let made = self.netlink.create_tunnel(name, link, LINK_ALIAS);
                match made {
                    Ok(()) => drop(self.devices.remove(name)),
                    // What was to be on it need not be complained about as well.
                    Err(_) => drop(self.devices.insert(name.clone(), None)),
                }
                made
            }
            Change::UpdateLink(name, update) => match self.device(name, change) {
                Some(index) => {
                    let update = LinkChange {
                        up: update.up.then_some(true),
                        mtu: update.mtu,
                        mac: update.mac,
                        ..Default::default()
                    };
                    let operation = change.to_string();
                    self.netlink.set_link(index, &update).map_err(|error| Error { operation, ..error })
                }
                None => Ok(()),
            },
            Change::SetTxChecksum(name, on) => match self.device(name, change) {
                Some(_) => self.netlink.set_tx_checksum(name, *on),
                None => Ok(()),
            },
            _ => Ok(()),
        };
        self.failures.extend(done.err());
    }

    /// The index of a device. None if it does not exist, which the first change that needs it reports.
    fn device(&mut self, name: &str, change: &Change) -> Option<u32> {
        if let Some(known) = self.devices.get(name) {
            return *known;
        }
        let found = match self.netlink.link(name) {
            Ok(link) => link.map(|link| link.index),
            Err(error) => {
                self.failures.push(Error { operation: format!("{change}: {}", error.operation), ..error });
                self.devices.insert(name.to_owned(), None);
                return None;
            }
        };
        // What is to be removed from a device went with it.
        if found.is_none() && !is_removal(change) {
            self.failures.push(Error::new(change.to_string(), Errno::ENODEV));
            self.devices.insert(name.to_owned(), None);
        } else if found.is_some() {
            self.devices.insert(name.to_owned(), found);
        }
        found
    }

    fn flush(&mut self) {
        let (changes, messages): (Vec<_>, Vec<_>) = self.batch.drain(..).unzip();
        let Some(first) = changes.first() else { return };
        match self.netlink.batch(&messages) {
            Ok(refusals) => {
                for (index, refusal) in refusals {
                    if let Some(change) =
                        changes.get(index).filter(|change| !done_already(change).contains(&refusal.errno))
                    {
                        self.failures.push(explained(refused(change.to_string(), refusal), change));
                    }
                }
            }
            Err(refusal) => {
                let operation = format!("{first}, and {} more changes", changes.len() - 1);
                self.failures.push(refused(operation, refusal));
            }
        }
    }
}

fn spec(dst: IpNetwork, route: &Route, dev: u32) -> RouteSpec {
    RouteSpec { dst, via: route.via, dev: Some(dev), onlink: route.onlink, ..RouteSpec::default() }
}

fn refusal(dst: IpNetwork, kind: RouteKind) -> RouteSpec {
    RouteSpec { dst, kind, metric: Some(REFUSAL_METRIC), ..RouteSpec::default() }
}

fn is_removal(change: &Change) -> bool {
    matches!(
        change,
        Change::DeleteRoute(..)
            | Change::DeleteStray(..)
            | Change::DeleteFdb(..)
            | Change::DeleteNeighbour(..)
            | Change::DeleteAddress(..)
    )
}

/// The error with what the kernel does not say.
fn explained(error: Error, change: &Change) -> Error {
    match change {
        Change::AddRoute(..) if error.errno == Errno::EEXIST => {
            error.because("somebody else's route to it is in the way; delete that, or give the node another subnet")
        }
        _ => error,
    }
}

/// The errnos that say that there is nothing left to do.
fn done_already(change: &Change) -> &'static [Errno] {
    match change {
        Change::DeleteRoute(..) | Change::DeleteStray(..) | Change::DeleteRefusal(..) => &[Errno::ESRCH, Errno::ENODEV],
        Change::DeleteFdb(..) | Change::DeleteNeighbour(..) => &[Errno::ENOENT, Errno::ENODEV],
        Change::DeleteAddress(..) => &[Errno::EADDRNOTAVAIL, Errno::ENODEV],
        Change::AddAddress(..) => &[Errno::EEXIST],
        _ => &[],
    }
}
