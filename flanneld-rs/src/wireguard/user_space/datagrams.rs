//! Datagrams on their way out: those of one length to one place leave in one system call, and go through the kernel as one
//! packet until a device cuts them (UDP_SEGMENT, udp(7)).

use super::Shared;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

/// The kernel takes so many pieces (UDP_MAX_SEGMENTS), and an IP packet so many bytes, in one go.
const PIECES: usize = 64;
const BYTES: usize = 65_000;
/// Room for what is collected between two flushes, and for one more datagram of the largest size.
const ROOM: usize = 2 * BYTES;
/// What encryption adds to a packet; a handshake message needs more than an empty packet.
const OVERHEAD: usize = 32;
const SHORTEST: usize = 256;

/// Collects datagrams.
pub(super) struct Datagrams<'a> {
    shared: &'a Shared,
    buffer: Vec<u8>,
    /// what is collected and not sent: from here to `end`
    start: usize,
    end: usize,
    /// of those: where they go, the length of each but the last, their number, and that nothing may follow
    to: Option<SocketAddr>,
    size: usize,
    pieces: usize,
    closed: bool,
}

impl<'a> Datagrams<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Datagrams { shared, buffer: vec![0; ROOM], start: 0, end: 0, to: None, size: 0, pieces: 0, closed: false }
    }

    /// Adds what `write` writes into the room that it is given, enough for a packet of `length` bytes encrypted; it returns
    /// the number of bytes, 0 for nothing.
    pub(super) fn add(&mut self, to: SocketAddr, length: usize, write: impl FnOnce(&mut [u8]) -> usize) {
        if self.buffer.len() - self.end < (length + OVERHEAD).max(SHORTEST) {
            self.flush();
        }
        let written = write(self.buffer.get_mut(self.end..).unwrap_or_default());
        if written == 0 {
            return;
        }
        let fits = self.to == Some(to)
            && !self.closed
            && written <= self.size
            && self.pieces < PIECES
            && self.end - self.start + written <= BYTES;
        if !fits {
            self.send();
            (self.to, self.size, self.closed) = (Some(to), written, false);
        }
        self.end += written;
        self.pieces += 1;
        self.closed |= written < self.size;
    }

    /// Sends what is collected.
    pub(super) fn flush(&mut self) {
        self.send();
        (self.start, self.end) = (0, 0);
    }

    fn send(&mut self) {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let pieces = std::mem::take(&mut self.pieces);
        self.start = self.end;
        let Some(to) = self.to.take().filter(|to| pieces > 0 && to.port() != 0) else { return };
        let together = pieces > 1 && self.shared.segmentation.load(Ordering::Relaxed);
        let size = u16::try_from(self.size).ok().filter(|_| together);
        if pieces > 1 && size.is_none() {
            return self.one_by_one(bytes, to);
        }
        match self.transmit(bytes, to, size) {
            // The device cannot, or the path takes no packets of this size in one piece.
            Err(errno @ (Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP)) if together => {
                if errno == Errno::EIO {
                    self.shared.segmentation.store(false, Ordering::Relaxed);
                }
                self.one_by_one(bytes, to);
            }
            sent => self.shared.sent(sent.map_err(|errno| (to, errno))),
        }
    }

    fn one_by_one(&self, bytes: &[u8], to: SocketAddr) {
        for piece in bytes.chunks(self.size.max(1)) {
            self.shared.sent(self.transmit(piece, to, None).map_err(|errno| (to, errno)));
        }
    }

    fn transmit(&self, bytes: &[u8], to: SocketAddr, size: Option<u16>) -> Result<(), Errno> {
        let segments = size.as_ref().map(ControlMessage::UdpGsoSegments);
        let target = self.shared.socket.target(to);
        let socket = self.shared.socket.socket.as_raw_fd();
        loop {
            match sendmsg(socket, &[IoSlice::new(bytes)], segments.as_slice(), MsgFlags::empty(), Some(&target)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
