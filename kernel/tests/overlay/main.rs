//! The overlay on the real kernel: what is applied is what is observed, and what is broken heals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

mod applied;
mod damage;
mod others;
mod stage;
