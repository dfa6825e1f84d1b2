//! The state that the kernel was brought to last, and the short way from it: where only leases of peers have changed, nothing
//! else need be looked at. The long way, by what the kernel really has, is gone when anything else may have changed.

use crate::backend::{Backend, Desired, Node, Work};
use crate::family::PerFamily;
use crate::lease::{Lease, LeaseTable};
use crate::uplink::Uplink;
use ipnetwork::IpNetwork;
use kernel::Change;
use std::sync::Arc;

/// What a state of the overlay follows from.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    /// the interface between nodes
    pub(crate) uplink: Uplink,
    /// this node's lease
    pub(crate) own: Lease,
    /// all nodes' leases
    pub(crate) leases: Arc<LeaseTable>,
}

impl Cause {
    fn node<'a>(&'a self, networks: &'a PerFamily<IpNetwork>) -> Node<'a> {
        Node { networks, uplink: &self.uplink, own: &self.own }
    }

    /// What this process has to do itself.
    pub(crate) fn work(&self, backend: &Backend, networks: &PerFamily<IpNetwork>) -> Work {
        backend.work(&self.node(networks), &self.leases)
    }

    /// The state that follows.
    pub(crate) fn desired(&self, backend: &Backend, networks: &PerFamily<IpNetwork>) -> Desired {
        backend.desired(&self.node(networks), &self.leases)
    }
}

/// A state that is in place, as far as anybody knows.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) cause: Cause,
    pub(crate) desired: Desired,
}

impl Standing {
    /// Whether it follows from `cause` as it is.
    pub(crate) fn is_of(&self, cause: &Cause) -> bool {
        Arc::ptr_eq(&self.cause.leases, &cause.leases) && self.is_of_same_node(cause)
    }

    fn is_of_same_node(&self, cause: &Cause) -> bool {
        self.cause.uplink == cause.uplink && self.cause.own == cause.own
    }

    /// What follows from `cause`, and the changes that lead there from here. None: only a look at the whole can tell.
    pub(crate) fn advance(
        self,
        cause: Cause,
        backend: &Backend,
        networks: &PerFamily<IpNetwork>,
    ) -> Option<(Self, Vec<Change>)> {
        if !self.is_of_same_node(&cause) {
            return None;
        }
        let (gone, new) = self.cause.leases.changes_to(&cause.leases);
        let node = cause.node(networks);
        let (gone, new) = (backend.peers(&node, &gone), backend.peers(&node, &new));
        let desired = self.desired.exchange(&gone, &new)?;
        Some((Standing { cause, desired }, kernel::diff(&gone.overlay, &new.overlay)))
    }
}
