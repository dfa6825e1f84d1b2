//! Flags of leases in the Kubernetes API: flannel's.

use super::go_bool;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// Where flannel's manifests mount the network configuration.
pub const NET_CONFIG_PATH: &str = "/etc/kube-flannel/net-conf.json";

/// The flags, and the variables that a pod has from its manifest.
#[derive(Clone, Debug, Args)]
pub struct Kubernetes {
    /// Contact the Kubernetes API for subnet assignment instead of etcd; the network configuration is in --net-config-path,
    /// by default /etc/kube-flannel/net-conf.json
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set, global = true)]
    pub kube_subnet_mgr: bool,

    /// Kubernetes API server URL; not needed in a pod or with a kubeconfig
    #[arg(long, env = "FLANNELD_KUBE_API_URL", global = true)]
    pub kube_api_url: Option<String>,

    /// kubeconfig file; not needed in a pod
    #[arg(long, env = "FLANNELD_KUBECONFIG_FILE", global = true)]
    pub kubeconfig_file: Option<PathBuf>,

    /// Kubernetes annotation prefix; can contain a single slash
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", default_value = "flannel.alpha.coreos.com", global = true)]
    pub kube_annotation_prefix: String,

    /// Set the node's condition NetworkUnavailable to False once it has a subnet
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set)]
    pub set_node_network_unavailable: bool,

    /// Name of the pod that the daemon runs in, from which the node's name follows where NODE_NAME is not set
    #[arg(long, env = "POD_NAME", hide = true)]
    pub pod_name: Option<String>,

    /// Namespace of that pod
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub pod_namespace: Option<String>,
}

impl Kubernetes {
    /// Values that are empty are none, as for flannel.
    pub fn api_url(&self) -> Option<&str> {
        self.kube_api_url.as_deref().filter(|url| !url.is_empty())
    }

    /// See [`Self::api_url`].
    pub fn kubeconfig(&self) -> Option<&PathBuf> {
        self.kubeconfig_file.as_ref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Namespace and name of the pod that the daemon runs in.
    pub fn pod(&self) -> Option<(String, String)> {
        self.pod_namespace.clone().zip(self.pod_name.clone())
    }
}
