//! A real Kubernetes with real nodes, where its programs are on this machine: its own API server, controllers, scheduler and
//! kubelets, and the manifest of this repository.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod manifest;
mod processes;
mod stage;
mod take_over;
