//! What a test or a demonstration needs beside a network namespace to be harmless: root of its own, mounts of its own,
//! and no process that outlives it.

use super::unshare;
use crate::{Error, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};
use std::fs;

/// Makes the calling process root of a new user namespace in which its user and group are 0, and moves it to a new network
/// namespace that belongs to it: it may make others then, and enter and leave them, without being root outside. The
/// process must have a single thread (EINVAL otherwise, unshare(2)).
pub fn enter_user_namespace() -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    // Both in one call: nobody who left a network namespace of another owner could return to it.
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|errno| {
        Error::new("making a user namespace", errno)
            .because("are unprivileged user namespaces allowed here (user.max_user_namespaces, kernel.unprivileged_userns_clone)?")
    })?;
    // user_namespaces(7): without privilege outside, the group map may be written only once setgroups is denied.
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("0 {user} 1"))?;
    write_map("gid_map", &format!("0 {group} 1"))
}

fn write_map(name: &str, text: &str) -> Result<()> {
    let path = format!("/proc/self/{name}");
    fs::write(&path, text).map_err(|error| Error::io(format!("writing {text:?} to {path}"), &error))
}

/// Gives the calling process mounts of its own: what it mounts from now on is seen by itself and its children only. To be
/// called before other threads exist, since it moves only the calling one.
pub fn isolate_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| Error::new("making a mount namespace", errno))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| Error::new("making the mounts under / private", errno))
}

/// Has the kernel kill the calling process when the thread that made it ends. Both call this in the child, right after
/// it started; a parent that is gone by then is not noticed.
pub fn die_with_parent() -> Result<()> {
    prctl::set_pdeathsig(Some(Signal::SIGKILL))
        .map_err(|errno| Error::new("asking to be killed with the parent", errno))
}
