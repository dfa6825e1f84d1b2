//! Flags of flannel's that existing units and manifests have and that mean nothing here: they are taken, and said to be so.

use super::go_bool;
use clap::{ArgAction, Args};

/// The flags. Unset ones are not spoken of.
#[derive(Clone, Debug, Default, Args)]
pub struct WithoutEffect {
    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_VMODULE", hide = true)]
    vmodule: Option<String>,

    /// Accepted and without effect
    #[arg(long = "log_backtrace_at", env = "FLANNELD_LOG_BACKTRACE_AT", hide = true)]
    log_backtrace_at: Option<String>,

    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set, hide = true)]
    set_node_network_unavailable: Option<bool>,

    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_KUBE_API_URL", hide = true)]
    kube_api_url: Option<String>,

    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", hide = true)]
    kube_annotation_prefix: Option<String>,

    /// Accepted and without effect
    #[arg(long, env = "FLANNELD_KUBECONFIG_FILE", hide = true)]
    kubeconfig_file: Option<String>,
}

impl WithoutEffect {
    /// A line for each flag that was given: what it is not good for.
    pub fn remarks(&self) -> Vec<String> {
        let logging = "messages are not chosen by source file; use --v";
        let kubernetes = "leases in the Kubernetes API are not built yet";
        let given = [
            ("--vmodule", self.vmodule.is_some(), logging),
            ("--log_backtrace_at", self.log_backtrace_at.is_some(), logging),
            ("--set-node-network-unavailable", self.set_node_network_unavailable.is_some(), kubernetes),
            ("--kube-api-url", self.kube_api_url.is_some(), kubernetes),
            ("--kube-annotation-prefix", self.kube_annotation_prefix.is_some(), kubernetes),
            ("--kubeconfig-file", self.kubeconfig_file.is_some(), kubernetes),
        ];
        let remark = |(flag, _, reason): (&str, bool, &str)| format!("{flag} has no effect: {reason}");
        given.into_iter().filter(|(_, given, _)| *given).map(remark).collect()
    }
}
