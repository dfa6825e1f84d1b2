//! What `conf/` has for Kubernetes: manifest, kustomize overlays and Helm chart, read as the API, kubectl and helm read them,
//! and the DaemonSet's pod run by a real containerd with no more rights than the manifest gives it.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod chart;
mod guide;
mod kubelet;
mod manifests;
mod migration;
mod node;
mod objects;
mod server;
