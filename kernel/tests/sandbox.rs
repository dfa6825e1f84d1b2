//! A process without privilege makes a world of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::{Netns, die_with_parent, enter_user_namespace, isolate_mounts};
use nix::sys::prctl::{get_pdeathsig, set_dumpable};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, geteuid, setgroups, setresgid, setresuid};

/// Runs `work` in a child, in which there is one thread only, as a user namespace wants it.
fn in_child(work: impl FnOnce() + std::panic::UnwindSafe) {
    // SAFETY: glibc makes its allocator usable in the child of a process with threads; nothing else is shared.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = if std::panic::catch_unwind(work).is_ok() { 0 } else { 1 };
            // SAFETY: ends the process; the test harness of the parent must not run in it.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0), "see the panic above");
        }
    }
}

fn become_nobody() {
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
        setgroups(&[group]).unwrap();
        setresgid(group, group, group).unwrap();
        setresuid(user, user, user).unwrap();
        // A process that changed its user may not write its own maps before this.
        set_dumpable(true).unwrap();
    }
}

#[test]
fn nobody_becomes_root_of_a_network_and_of_mounts() {
    in_child(|| {
        become_nobody();
        enter_user_namespace().unwrap();
        assert!(geteuid().is_root());
        isolate_mounts().unwrap();
        let netns = Netns::create().unwrap();
        let mut netlink = Netlink::open_in(&netns).unwrap();
        let loopback = netlink.link("lo").unwrap().unwrap();
        netlink.set_link(loopback.index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        let path = std::env::temp_dir().join(format!("sandbox-test-{}", std::process::id()));
        netns.pin(&path).unwrap();
        assert_eq!(Netns::open(&path).unwrap().id(), netns.id());
        Netns::unpin(&path).unwrap();
    });
}

#[test]
fn a_child_asks_to_go_with_its_parent() {
    in_child(|| {
        die_with_parent().unwrap();
        assert_eq!(get_pdeathsig().unwrap(), Some(Signal::SIGKILL));
    });
}
