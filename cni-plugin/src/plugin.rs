//! The bridge plugin, in its two dialects: `flannel-rs` and the reference `bridge`.

use crate::config::Dialect;
use crate::{add, check, del, gc, status};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use std::fmt::Display;
use std::path::Path;

/// A bridge plugin that reads its configuration in one dialect.
pub(crate) struct Bridge(Dialect);

/// `type: flannel-rs`
pub(crate) static FLANNEL_RS: Bridge = Bridge(Dialect::FlannelRs);
/// `type: bridge`
pub(crate) static BRIDGE: Bridge = Bridge(Dialect::Bridge);
/// `type: ptp`, which differs by what it leaves out
pub(crate) static POINT_TO_POINT: Bridge = Bridge(Dialect::PointToPoint);

impl Plugin for Bridge {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        add::add(self.0, sandbox, config)
    }

    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        del::del(self.0, id, netns, args, config)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        check::check(self.0, sandbox, config)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        gc::gc(self.0, config, valid)
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        status::status(self.0, config)
    }
}

/// A kernel failure as the runtime reads it.
pub(crate) fn kernel_error(error: kernel::Error) -> CniError {
    CniError::new(Code::Kernel, error.to_string())
}

/// A kernel failure in the course of what an operator has a name for; the kernel itself speaks of link numbers.
pub(crate) fn failed(course: impl Display) -> impl FnOnce(kernel::Error) -> CniError {
    move |error| CniError::new(Code::Kernel, format!("{course}: {error}"))
}
