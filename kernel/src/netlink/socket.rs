//! Raw netlink: framing, acknowledgements, dumps and batches. What the messages mean is the business of the nouns
//! (links, addresses, routes, ...) and of nftables.

use netlink_packet_core::Emitable;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const HEADER: usize = 16;
/// The kernel answers in pieces of at most 32 KiB (`netlink_dump`). Small enough to come from the heap, without a mapping, and
/// not cleared: that would touch every page.
const LARGEST_ANSWER: usize = 64 << 10;
pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The answer is one of several (linux/netlink.h).
pub const NLM_F_MULTI: u16 = 2;
/// A request to the kernel (linux/netlink.h).
pub const NLM_F_REQUEST: u16 = 1;
/// Wants an acknowledgement (linux/netlink.h).
pub const NLM_F_ACK: u16 = 4;
/// Wants what the request brings about told, as listeners are (linux/netlink.h).
pub const NLM_F_ECHO: u16 = 8;
/// Dump (linux/netlink.h).
pub const NLM_F_DUMP: u16 = 0x300;
/// Replace an existing object (linux/netlink.h).
pub const NLM_F_REPLACE: u16 = 0x100;
/// Fail if it exists (linux/netlink.h).
pub const NLM_F_EXCL: u16 = 0x200;
/// Create it (linux/netlink.h).
pub const NLM_F_CREATE: u16 = 0x400;
/// Add to the end of the list (linux/netlink.h).
pub const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One message without its sequence number.
#[derive(Clone, Debug)]
pub struct Message {
    /// nlmsg_type
    pub kind: u16,
    /// nlmsg_flags; NLM_F_REQUEST is added
    pub flags: u16,
    /// what follows the header
    pub payload: Vec<u8>,
}

impl Message {
    /// A message whose payload is `body` in its wire form.
    pub(crate) fn encode(kind: u16, flags: u16, body: &impl Emitable) -> Self {
        let mut payload = vec![0; body.buffer_len()];
        body.emit(&mut payload);
        Message { kind, flags, payload }
    }
}

/// A refusal by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// the errno
    pub errno: Errno,
    /// extended acknowledgement text, or empty
    pub reason: String,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal { errno, reason: String::new() }
    }
}

/// A netlink socket of the network namespace that the thread was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens and binds a socket of `protocol` (route, netfilter).
    pub fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        Socket::subscribe(protocol, 0)
    }

    /// Opens a socket that also receives the notifications of `groups`, a mask like RTMGRP_LINK. Given to bind, since a
    /// socket that only joins groups has no address and is told nothing.
    pub(crate) fn subscribe(protocol: SockProtocol, groups: u32) -> Result<Self, Errno> {
        let fd = netlink_socket(protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // These only add information to acknowledgements and let the kernel select what a dump lists; a kernel without
        // them is no reason to stop, since what a dump lists is looked at again.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            let _ = set_netlink_option(&fd, option);
        }
        // A batch of many messages answers with as many acknowledgements, and a table of nftables is sent in one piece. The
        // usual limit (net.core.wmem_max) is 208 KiB; the privileged ways around it fail in a user namespace.
        let size = 4 << 20;
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &size).or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &size));
        let _ = setsockopt(&fd, sockopt::SndBufForce, &size).or_else(|_| setsockopt(&fd, sockopt::SndBuf, &size));
        Ok(Socket { fd, sequence: 0, buffer: Vec::with_capacity(LARGEST_ANSWER) })
    }

    /// Index of the device called `name` in the socket's namespace (netdevice(7): any socket will do). ENODEV if there is
    /// none, or `name` is longer than names are.
    pub(crate) fn interface_index(&self, name: &str) -> Result<u32, Errno> {
        let mut request = interface_request(name)?;
        // SAFETY: the pointer is to a live ifreq, whose name ends in a zero, and the descriptor is open.
        Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
        // SAFETY: this is the member that SIOCGIFINDEX fills, and any bits are a number.
        u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(|_| Errno::ENODEV)
    }

    /// Hands `data`, a command of linux/ethtool.h with what belongs to it, to the driver of the device called `name` in the
    /// socket's namespace. `data` has to be as long as the kernel's structure for this command.
    pub(super) fn ethtool(&self, name: &str, data: &mut [u8]) -> Result<(), Errno> {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        // SAFETY: the pointer is to a live ifreq, whose name ends in a zero, and which points to memory that is borrowed for the
        // call and as long as its command has it (see the callers in `ethtool`); the descriptor is open.
        Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }).map(drop)
    }

    /// Has receiving give up with EAGAIN after this long (at least a microsecond).
    pub(crate) fn set_timeout(&self, timeout: Duration) -> Result<(), Errno> {
        let timeout = timeout.max(Duration::from_micros(1));
        let seconds = libc::time_t::try_from(timeout.as_secs()).map_err(|_| Errno::EDOM)?;
        let value = TimeVal::new(seconds, timeout.subsec_micros().into());
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &value)
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(&mut self, message: Message) -> Result<(), Refusal> {
        match self.batch(std::slice::from_ref(&message))?.pop() {
            Some((_, refusal)) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Sends all messages in one system call, each with an acknowledgement, and returns the refusals by index.
    /// Keep a batch under about 64 messages: the socket's buffer holds their acknowledgements.
    pub fn batch(&mut self, messages: &[Message]) -> Result<Vec<(usize, Refusal)>, Refusal> {
        let first = self.transmit(messages, NLM_F_ACK)?;
        let mut refusals = Vec::new();
        let mut outstanding = messages.len();
        while outstanding > 0 {
            self.receive(|kind, flags, sequence, payload| {
                let index = sequence.wrapping_sub(first) as usize;
                if kind == NLMSG_ERROR && index < messages.len() {
                    outstanding = outstanding.saturating_sub(1);
                    if let Some(refusal) = refusal(flags, payload) {
                        refusals.push((index, refusal));
                    }
                }
            })?;
        }
        Ok(refusals)
    }

    /// Sends messages that must arrive as one unit and in which only those with NLM_F_ACK of their own are acknowledged
    /// (nftables transactions). Returns the first refusal with the index of its message.
    pub fn transaction(&mut self, messages: &[Message]) -> Result<(), (usize, Refusal)> {
        let first = self.transmit(messages, 0).map_err(|errno| (0, errno.into()))?;
        let mut outstanding = messages.iter().filter(|message| message.flags & NLM_F_ACK != 0).count();
        let mut refused = None;
        while outstanding > 0 {
            self.receive(|kind, flags, sequence, payload| {
                let index = sequence.wrapping_sub(first) as usize;
                if kind != NLMSG_ERROR || index >= messages.len() {
                    return;
                }
                // A refused batch is acknowledged no further than its refusals: any of them ends the wait.
                match refusal(flags, payload) {
                    Some(refusal) => {
                        refused.get_or_insert((index, refusal));
                        outstanding = 0;
                    }
                    None => outstanding = outstanding.saturating_sub(1),
                }
            })
            .map_err(|errno| (0, errno.into()))?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends one request and hands every answer (type, payload) to `each`, until the end of the dump, or the first answer
    /// where the request is no dump. A dump that the kernel reports as interrupted by a change is taken again from the
    /// start, with a new `T`; EINTR if that does not help.
    pub fn query<T: Default>(
        &mut self,
        message: Message,
        mut each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, Refusal> {
        for _attempt in 0..16 {
            let mut found = T::default();
            let first = self.transmit(std::slice::from_ref(&message), 0)?;
            let mut failed = None;
            let (mut finished, mut interrupted) = (false, false);
            while !finished {
                self.receive(|kind, flags, sequence, payload| {
                    if sequence != first {
                        return;
                    }
                    interrupted |= flags & NLM_F_DUMP_INTR != 0;
                    match kind {
                        NLMSG_DONE => finished = true,
                        NLMSG_ERROR => {
                            failed = refusal(flags, payload);
                            finished = true;
                        }
                        kind => {
                            each(&mut found, kind, payload);
                            finished |= flags & NLM_F_MULTI == 0;
                        }
                    }
                })?;
            }
            match failed {
                Some(refusal) => return Err(refusal),
                None if interrupted => continue,
                None => return Ok(found),
            }
        }
        Err(Errno::EINTR.into())
    }

    fn transmit(&mut self, messages: &[Message], extra: u16) -> Result<u32, Errno> {
        let first = self.sequence.wrapping_add(1);
        let bytes = frame(messages, first, extra)?;
        self.sequence = self.sequence.wrapping_add(u32::try_from(messages.len()).map_err(|_| Errno::EMSGSIZE)?);
        loop {
            match send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(first),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Waits for one datagram and hands its messages (type, flags, sequence, payload) to `each`. Nobody but the kernel
    /// can have sent them: that takes CAP_NET_ADMIN in the namespace (netlink(7)).
    pub(crate) fn receive(&mut self, mut each: impl FnMut(u16, u16, u32, &[u8])) -> Result<(), Errno> {
        self.buffer.clear();
        let room = self.buffer.spare_capacity_mut();
        let length = loop {
            // SAFETY: the pointer and the length are those of live memory that nobody else sees, and the descriptor is open.
            match Errno::result(unsafe {
                libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), libc::MSG_TRUNC)
            }) {
                Ok(length) => break usize::try_from(length).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        };
        // MSG_TRUNC has recv tell the true length, also of what did not fit.
        if length > room.len() {
            return Err(Errno::EMSGSIZE);
        }
        // SAFETY: the kernel has written this many bytes, which fit.
        unsafe { self.buffer.set_len(length) };
        let mut rest = self.buffer.as_slice();
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if size < HEADER || size > rest.len() {
                return Err(Errno::EBADMSG);
            }
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let flags = u16::from_ne_bytes([rest[6], rest[7]]);
            let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
            each(kind, flags, sequence, &rest[HEADER..size]);
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An ioctl's question about a device (netdevice(7)). ENODEV if `name` is longer than names are.
fn interface_request(name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: all of ifreq is numbers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

#[expect(clippy::disallowed_methods, reason = "this is the door that the rule points to")]
pub(crate) fn netlink_socket(protocol: SockProtocol) -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
}

/// The messages in their wire form, numbered from `first`, with `extra` flags on each.
pub(crate) fn frame(messages: &[Message], first: u32, extra: u16) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(messages.iter().map(|message| HEADER + message.payload.len() + 4).sum());
    let mut sequence = first;
    for message in messages {
        let length = u32::try_from(HEADER + message.payload.len()).map_err(|_| Errno::EMSGSIZE)?;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(message.flags | NLM_F_REQUEST | extra).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&message.payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        sequence = sequence.wrapping_add(1);
    }
    Ok(bytes)
}

fn set_netlink_option(fd: &OwnedFd, option: i32) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe a live c_int, and the descriptor is open for the length of the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// The refusal in an NLMSG_ERROR payload, or none if it is a plain acknowledgement.
pub(crate) fn refusal(flags: u16, payload: &[u8]) -> Option<Refusal> {
    let code = payload.first_chunk::<4>().map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
    (code != 0).then(|| Refusal {
        errno: Errno::from_raw(code.wrapping_neg()),
        reason: extended_text(flags, payload).unwrap_or_default(),
    })
}

/// The kernel's own words (NLMSGERR_ATTR_MSG), which follow the error code and the echoed request.
fn extended_text(flags: u16, payload: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let echoed = payload.get(4..8)?;
    let echoed = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        u32::from_ne_bytes([echoed[0], echoed[1], echoed[2], echoed[3]]) as usize
    };
    let mut rest = payload.get(4 + echoed.next_multiple_of(4)..)?;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == NLMSGERR_ATTR_MSG {
            let text = rest.get(4..length)?;
            return Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}
