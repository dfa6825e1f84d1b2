//! Many UDP datagrams in one system call (recvmmsg(2), sendmmsg(2)), in buffers that are made once.

use crate::{Error, Result};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// As many as a system call is worth, and few enough to stay in a processor's cache.
const BATCH: usize = 64;
/// What the kernel may keep for a process that is late: some milliseconds of a fast network, in bytes.
const SOCKET_BUFFER: libc::c_int = 4 << 20;

/// IP_PMTUDISC_OMIT and IPV6_PMTUDISC_OMIT (linux/in.h, linux/in6.h): no DF bit, and no heed to what anybody tells of the
/// path, as in the kernel's own tunnels.
const OMIT: libc::c_int = 5;

/// A socket for encapsulated packets, bound to `address`; its buffers are large, and routers may fragment what it sends:
/// pods are told an MTU that fits the underlay's device, and what does not fit beyond that had better arrive in pieces.
///
/// EADDRINUSE if another process has the port, EADDRNOTAVAIL if the node does not have the address (yet).
pub fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let failed = |error: io::Error| {
        let failure = Error::io(format!("binding UDP socket {address}"), &error);
        match error.kind() {
            io::ErrorKind::AddrInUse => failure.because("another process has the port (is another flanneld running?)"),
            _ => failure,
        }
    };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(false).map_err(failed)?;
    for buffer in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // Without the privilege it is as large as the system's limit says.
        let _ = set_option(&socket, libc::SOL_SOCKET, buffer, SOCKET_BUFFER);
    }
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    set_option(&socket, level, option, OMIT).map_err(failed)?;
    Ok(socket)
}

fn set_option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and the value is a live int of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Up to 64 datagrams.
#[derive(Debug)]
pub struct Batch {
    size: usize,
    bytes: Box<[u8]>,
    lengths: Vec<usize>,
    destinations: Vec<SockaddrStorage>,
}

/// What became of a batch that was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// how many datagrams the kernel did not take
    pub count: usize,
    /// the errno of the last of them
    pub last: Option<nix::errno::Errno>,
}

impl Batch {
    /// An empty batch of datagrams of up to `size` bytes.
    pub fn new(size: usize) -> Self {
        Batch {
            size,
            bytes: vec![0; size * BATCH].into_boxed_slice(),
            lengths: Vec::with_capacity(BATCH),
            destinations: Vec::with_capacity(BATCH),
        }
    }

    /// The buffer of the next datagram, to be filled before [`Batch::push`]; none if the batch is full.
    pub fn vacant(&mut self) -> Option<&mut [u8]> {
        self.bytes.chunks_exact_mut(self.size).nth(self.lengths.len())
    }

    /// Adds what is in the vacant buffer: a datagram of `length` bytes to `destination`.
    pub fn push(&mut self, length: usize, destination: SocketAddr) {
        if self.lengths.len() < BATCH {
            self.lengths.push(length.min(self.size));
            self.destinations.push(destination.into());
        }
    }

    /// The datagrams.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(self.size).zip(&self.lengths).filter_map(|(slot, length)| slot.get_mut(..*length))
    }

    /// Sends all datagrams and empties the batch; waits where the socket's buffer is full. What the kernel refuses is lost,
    /// and the others are sent.
    pub fn send(&mut self, socket: &UdpSocket) -> Refused {
        let mut refused = Refused::default();
        let mut vectors = self.vectors();
        let mut messages = messages(&mut vectors);
        for (message, destination) in messages.iter_mut().zip(&self.destinations) {
            message.msg_hdr.msg_name = destination.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = destination.len();
        }
        let mut rest = messages.get_mut(..self.destinations.len()).unwrap_or_default();
        while !rest.is_empty() {
            // SAFETY: each of the headers points to one vector in `vectors`, to a datagram in `self.bytes` through it, and
            // to an address in `self.destinations`, all of which live on untouched during the call.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
            let done = match usize::try_from(sent) {
                Ok(sent) => sent,
                Err(_) => match nix::errno::Errno::last() {
                    nix::errno::Errno::EINTR => 0,
                    errno => {
                        // The error is about the first one that is left.
                        refused = Refused { count: refused.count + 1, last: Some(errno) };
                        1
                    }
                },
            };
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        self.lengths.clear();
        self.destinations.clear();
        refused
    }

    /// Takes what has come in, in the place of what the batch held. Datagrams that are longer than the buffers are left out.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.lengths.clear();
        self.destinations.clear();
        self.lengths.resize(BATCH, self.size);
        let mut vectors = self.vectors();
        let mut messages = messages(&mut vectors);
        // SAFETY: each of the headers points to one vector in `vectors`, and through it to a buffer of its own in
        // `self.bytes`, which is borrowed mutably; no address and no control data are asked for.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        // Before anything else can change errno.
        let outcome = usize::try_from(received).map_err(|_| io::Error::last_os_error());
        self.lengths.clear();
        for message in messages.iter().take(*outcome.as_ref().unwrap_or(&0)) {
            let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            self.lengths.push(if whole { (message.msg_len as usize).min(self.size) } else { 0 });
        }
        outcome.map(drop)
    }

    fn vectors(&mut self) -> [libc::iovec; BATCH] {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let slots = self.bytes.chunks_exact_mut(self.size).zip(&self.lengths);
        for (vector, (slot, length)) in vectors.iter_mut().zip(slots) {
            *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: *length };
        }
        vectors
    }
}

fn messages(vectors: &mut [libc::iovec; BATCH]) -> [libc::mmsghdr; BATCH] {
    // SAFETY: a header of zeros and null pointers is a valid one, that of an empty message.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (message, vector) in messages.iter_mut().zip(vectors) {
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        (bind("127.0.0.1:0".parse().unwrap()).unwrap(), bind("127.0.0.1:0".parse().unwrap()).unwrap())
    }

    #[test]
    fn a_full_batch_arrives_in_order_and_nothing_more_fits() {
        let (from, to) = pair();
        let (mut out, mut back) = (Batch::new(100), Batch::new(100));
        for number in 0..BATCH + 1 {
            match out.vacant() {
                Some(slot) => slot[0] = number as u8,
                None => assert_eq!(number, BATCH),
            }
            out.push(1 + number % 100, to.local_addr().unwrap());
        }
        assert_eq!(out.send(&from), Refused::default());
        assert_eq!(out.datagrams().count(), 0);
        let mut seen = Vec::new();
        while seen.len() < BATCH {
            match back.receive(&to) {
                Ok(()) => seen.extend(back.datagrams().map(|datagram| (datagram[0], datagram.len()))),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(seen.iter().enumerate().all(|(at, seen)| *seen == (at as u8, 1 + at)), "{seen:?}");
        assert_eq!(back.receive(&to).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(back.datagrams().count(), 0);
    }

    #[test]
    fn one_that_is_refused_or_too_long_stops_no_other() {
        let (from, to) = pair();
        let mut out = Batch::new(2000);
        for destination in [to.local_addr().unwrap(), "[::1]:9".parse().unwrap(), to.local_addr().unwrap()] {
            out.push(if out.lengths.is_empty() { 1000 } else { 10 }, destination);
        }
        let refused = out.send(&from);
        assert_eq!((refused.count, refused.last), (1, Some(nix::errno::Errno::EAFNOSUPPORT)));
        let mut back = Batch::new(100);
        let mut lengths = Vec::new();
        while lengths.len() < 2 {
            if back.receive(&to).is_ok() {
                lengths.extend(back.datagrams().map(|datagram| datagram.len()));
            }
        }
        assert_eq!(lengths, [0, 10]);
    }

    #[test]
    fn a_taken_port_is_named() {
        let (taken, _) = pair();
        let error = bind(taken.local_addr().unwrap()).unwrap_err();
        assert!(error.to_string().contains("another process has the port"), "{error}");
    }
}
