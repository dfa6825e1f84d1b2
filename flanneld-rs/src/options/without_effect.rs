//! Flags of flannel's that existing units and manifests have and that mean nothing here: they are taken, and said to be so.

use clap::Args;

/// The flags. Unset ones are not spoken of.
#[derive(Clone, Debug, Default, Args)]
pub struct WithoutEffect {
    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_VMODULE", hide = true)]
    vmodule: Option<String>,

    /// Accepted and without effect
    #[arg(long = "log_backtrace_at", env = "FLANNELD_LOG_BACKTRACE_AT", hide = true)]
    log_backtrace_at: Option<String>,
}

impl WithoutEffect {
    /// A line for each flag that was given: what it is not good for.
    pub fn remarks(&self) -> Vec<String> {
        let logging = "messages are not chosen by source file; use --v";
        let given = [
            ("--vmodule", self.vmodule.is_some(), logging),
            ("--log_backtrace_at", self.log_backtrace_at.is_some(), logging),
        ];
        let remark = |(flag, _, reason): (&str, bool, &str)| format!("{flag} has no effect: {reason}");
        given.into_iter().filter(|(_, given, _)| *given).map(remark).collect()
    }
}
