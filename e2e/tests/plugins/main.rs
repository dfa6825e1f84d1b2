//! The plugins around the bridge, each with the same configuration as Debian's reference plugin of that name: the same
//! results, the same reach, and nothing left; and chains of ours and theirs.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bench;
mod differential;
mod flannel;
mod install;
mod isolation;
mod leftovers;
mod mixed;
mod settings;
