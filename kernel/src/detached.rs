//! Leaving the kernel's housekeeping to a process that nobody waits for.
//!
//! RTM_DELLINK takes some 20 ms, of which 19 are `rcu_barrier`: the device is gone from every list by then, nobody can see
//! it, and no lock is held. The wait is left to a process of its own; the caller returns when the kernel announces that the
//! device is gone, which is as good a proof as the acknowledgement.
//!
//! The same is done with what follows an operation and what nobody waits for: [`finish`].

use crate::netlink::socket::{NLM_F_ACK, NLMSG_ERROR, Refusal, Socket, frame, refusal};
use crate::netlink::{Link, Netlink, delete_link_message, open_socket, refused};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe2};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// After this long without an announcement the link is deleted in the ordinary way. Long, since many that are deleted at
/// once wait for each other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The child's request is the only one on its socket.
const SEQUENCE: u32 = 1;

/// Deletes the device called `name` in the namespace of `netlink`, and returns as soon as it is gone; false if there was
/// none. Not for processes that wait for children they do not know.
pub fn delete_link(netlink: &mut Netlink, name: &str) -> Result<bool> {
    match netlink.link(name)? {
        Some(link) => delete_found(netlink, &link),
        None => Ok(false),
    }
}

/// As [`delete_link`], for a device that was looked up already.
pub fn delete_found(netlink: &mut Netlink, link: &Link) -> Result<bool> {
    let mut socket = {
        let _inside = netlink.enter()?;
        open_socket(libc::RTMGRP_LINK as u32)?
    };
    let name = &link.name;
    match start(&socket, link.index).and_then(|()| await_deletion(&mut socket, link.index)) {
        Ok(Ok(())) => Ok(true),
        // Somebody else was faster.
        Ok(Err(refusal)) if refusal.errno == Errno::ENODEV => Ok(true),
        Ok(Err(refusal)) => Err(refused(format!("deleting link {name}"), refusal)),
        // No process to be had, or no announcement to be heard: then it takes its 20 ms. If it is gone after all, good.
        Err(_) => netlink
            .delete_link_by_index(link.index)
            .map(|_| true)
            .map_err(|error| Error { operation: format!("deleting link {name}"), ..error }),
    }
}

/// Leaves it to a child to be the last that closes `socket`. Closing any nfnetlink socket waits for the memory of removed
/// nftables objects (`nft_rcv_nl_event`), some 10 ms; if there is no process to be had, the caller waits.
pub(crate) fn close(socket: &Socket) {
    let _ = hand_over(socket, &[]);
}

/// Has a child send the request on `socket`.
fn start(socket: &Socket, index: u32) -> std::result::Result<(), Errno> {
    let request = frame(&[delete_link_message(index)], SEQUENCE, NLM_F_ACK)?;
    hand_over(socket, &request)
}

fn hand_over(socket: &Socket, request: &[u8]) -> std::result::Result<(), Errno> {
    // SAFETY: the child makes plain system calls on memory that was prepared before, and leaves by _exit; it takes no lock
    // that another thread could have held at this moment.
    match unsafe { fork() }? {
        // SAFETY: this is that child, and it was given a socket and a slice that live in its copy of the memory.
        ForkResult::Child => unsafe { send_and_exit(socket.as_fd().as_raw_fd(), request) },
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                // Children are reaped by themselves where SIGCHLD is ignored; the announcement tells.
                Ok(WaitStatus::Exited(_, 0)) | Err(Errno::ECHILD) => return Ok(()),
                _ => return Err(Errno::ECHILD),
            }
        },
    }
}

/// The child's life. It forks once more and ends, so that the one that works is no child of ours that we would have to
/// wait for.
///
/// # Safety
/// To be called in a freshly forked process only: it closes all its descriptors but `socket`.
unsafe fn send_and_exit(socket: RawFd, request: &[u8]) -> ! {
    // SAFETY: system calls on integers and on one live slice.
    unsafe {
        libc::setsid();
        match libc::fork() {
            0 => {}
            -1 => libc::_exit(1),
            _ => libc::_exit(0),
        }
        // Container runtimes wait for the end of the plugin's pipes, others for its locks, and its directory may be unmounted.
        close_all_but(&[socket]);
        libc::chdir(c"/".as_ptr());
        if !request.is_empty() {
            libc::send(socket, request.as_ptr().cast(), request.len(), 0);
        }
        libc::_exit(0)
    }
}

/// Does `work` in a process of its own, and returns without waiting for it; in place where no process is to be had. The
/// process shares the `sockets`, which `work` may use, and has no other descriptor. It also takes over what closing them
/// costs: the last one to close an nfnetlink socket waits for the memory of deleted objects, 6 to 14 ms.
///
/// For short-lived programs with a single thread, which do not wait for children they do not know.
pub fn finish<S: Sockets>(mut sockets: S, work: impl FnOnce(&mut S)) {
    let Ok((waiting, done)) = pipe2(OFlag::O_CLOEXEC) else { return work(&mut sockets) };
    let mut kept: Vec<RawFd> = sockets.descriptors();
    kept.push(waiting.as_raw_fd());
    kept.sort_unstable();
    // SAFETY: the caller has no other thread; were there one that has just been allocating memory, the C library would put
    // its allocator in order for the child. The child leaves by _exit.
    match unsafe { fork() } {
        Err(_) => work(&mut sockets),
        // SAFETY: system calls on integers in the child, which uses nothing but the descriptors that are kept.
        Ok(ForkResult::Child) => unsafe {
            libc::setsid();
            match libc::fork() {
                0 => {}
                -1 => libc::_exit(1),
                _ => libc::_exit(0),
            }
            close_all_but(&kept);
            libc::chdir(c"/".as_ptr());
            work(&mut sockets);
            // Until the parent has closed its sockets, so that ours are the last.
            libc::read(waiting.as_raw_fd(), (&raw mut kept[0]).cast(), 1);
            libc::_exit(0)
        },
        Ok(ForkResult::Parent { child }) => {
            let outcome = loop {
                match waitpid(child, None) {
                    Err(Errno::EINTR) => {}
                    outcome => break outcome,
                }
            };
            if matches!(outcome, Ok(WaitStatus::Exited(_, 1))) {
                work(&mut sockets);
            }
            drop(sockets);
            drop(done);
        }
    }
}

/// Connections to the kernel that [`finish`] hands over.
pub trait Sockets {
    /// The numbers of their descriptors.
    fn descriptors(&self) -> Vec<RawFd>;
}

impl<A: AsFd, B: AsFd> Sockets for (A, B) {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.0.as_fd().as_raw_fd(), self.1.as_fd().as_raw_fd()]
    }
}

/// # Safety
/// The process must not use any other descriptor afterwards. `kept` is sorted.
unsafe fn close_all_but(kept: &[RawFd]) {
    let mut first: libc::c_uint = 0;
    for end in kept.iter().map(|fd| *fd as libc::c_uint).chain([libc::c_uint::MAX]) {
        // SAFETY: system calls on integers.
        unsafe {
            if first < end && libc::syscall(libc::SYS_close_range, first, end - 1, 0) != 0 {
                // Before Linux 5.9.
                for fd in first..end.min(4096) {
                    libc::close(fd as RawFd);
                }
            }
        }
        first = end.saturating_add(1);
    }
}

/// Waits until the kernel has announced the end of the link, or acknowledged or refused the request.
fn await_deletion(socket: &mut Socket, index: u32) -> std::result::Result<std::result::Result<(), Refusal>, Errno> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::ETIMEDOUT);
        }
        socket.set_timeout(left)?;
        let mut outcome = None;
        socket.receive(|kind, flags, sequence, payload| match kind {
            NLMSG_ERROR if sequence == SEQUENCE => outcome = Some(refusal(flags, payload).map_or(Ok(()), Err)),
            libc::RTM_DELLINK if is_about(payload, index) => outcome = Some(Ok(())),
            _ => {}
        })?;
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
}

/// Whether an ifinfomsg is about the link as such. A bridge says with the same type and its own family that a port leaves
/// it, which happens earlier.
fn is_about(payload: &[u8], index: u32) -> bool {
    let family = payload.first().copied().map(i32::from);
    let number = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    family == Some(libc::AF_UNSPEC) && number == Some(index)
}
