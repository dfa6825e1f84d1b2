//! From the peers to the device: datagrams are taken, verified, decrypted, and handed to the kernel; handshakes are
//! answered, and the clock of all sessions is kept.

use super::Shared;
use super::datagrams::Datagrams;
use super::merge::Merge;
use super::peers::{Peer, Peers};
use super::session::{Line, Outcome};
use defguard_boringtun::noise::handshake::parse_handshake_anon;
use defguard_boringtun::noise::{Packet, TunnResult};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use std::io::{IoSliceMut, PipeReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Receptions, each of up to 64 KiB, before what was decrypted must go on.
const BURST: usize = 32;
/// The largest datagram, or bundle of datagrams.
const LONGEST: usize = 65_536;
/// How often the clocks of the sessions are looked at. They count in seconds.
const TICK: Duration = Duration::from_millis(500);
/// Handshakes that are begun in one tick with peers to whom nothing is sent: what they cost others is rationed there.
const GREETINGS: usize = 200;

/// Carries packets until the device is gone or `stop` is closed.
pub(super) fn run(shared: &Shared, stop: &PipeReader) {
    let mut buffer = vec![0; LONGEST];
    let (merge, replies) = (Merge::new(), Datagrams::new(shared));
    let mut inbound = Inbound { shared, plain: vec![0; LONGEST], merge, replies, greetings: GREETINGS };
    let mut next_tick = Instant::now();
    loop {
        let pause = next_tick.saturating_duration_since(Instant::now());
        if !shared.wait(&shared.socket.socket, stop, Some(pause)) {
            return;
        }
        let peers = shared.peers();
        if next_tick <= Instant::now() {
            next_tick = Instant::now() + TICK;
            inbound.tick();
        }
        for _ in 0..BURST {
            match receive(shared, &mut buffer) {
                Ok(Some((length, size, from))) => {
                    let bundle = buffer.get(..length).unwrap_or_default();
                    bundle.chunks(size.max(1)).for_each(|datagram| inbound.take(&peers, datagram, from));
                }
                Ok(None) => break,
                Err(Errno::EINTR) => {}
                // Told of the socket, and of no datagram in particular.
                Err(errno) => {
                    tracing::debug!("receiving: {errno}");
                    break;
                }
            }
        }
        inbound.flush();
    }
}

/// Takes what is there: its length, the length of each datagram in it but the last, and where it is from.
fn receive(shared: &Shared, buffer: &mut [u8]) -> Result<Option<(usize, usize, SocketAddr)>, Errno> {
    let mut control = nix::cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(buffer)];
    let socket = shared.socket.socket.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrStorage>(socket, &mut slices, Some(&mut control), flags) {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut size = message.bytes;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::UdpGroSegments(each) = control {
            size = usize::try_from(each).unwrap_or(size);
        }
    }
    let from = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
    });
    // An IPv4 address in the clothes of an IPv6 socket. A link-local one is kept with its scope.
    Ok(from.map(|from| match from.ip().to_canonical() {
        IpAddr::V4(ip) => (message.bytes, size, SocketAddr::new(ip.into(), from.port())),
        IpAddr::V6(_) => (message.bytes, size, from),
    }))
}

struct Inbound<'a> {
    shared: &'a Shared,
    plain: Vec<u8>,
    merge: Merge,
    replies: Datagrams<'a>,
    /// handshakes that may still begin before the next tick
    greetings: usize,
}

impl Inbound<'_> {
    fn take(&mut self, peers: &Peers, datagram: &[u8], from: SocketAddr) {
        let Some(peer) = self.sender(peers, datagram, from) else { return };
        let mut line = Line::new(self.shared, peer);
        match line.decrypt(datagram, from, &mut self.plain) {
            Outcome::Nothing => return,
            // The peer has not heard that this node has forgotten their session, as with its last life; it would doubt after 15 s.
            Outcome::Stale => return self.greet(&mut line),
            Outcome::Cookie(length) => return self.reply(from, length),
            Outcome::Authentic => {}
            Outcome::Reply(length) => self.reply(from, length),
            Outcome::Packet(length, source) => {
                let is_theirs = peers.by_address(source).is_some_and(|owner| owner.index == peer.index);
                if is_theirs {
                    let packet = self.plain.get(..length).unwrap_or_default();
                    self.merge.add(packet, &mut |bytes| self.shared.deliver(bytes));
                }
            }
        }
        loop {
            match line.kept(&mut self.plain) {
                0 => break,
                length => self.reply(from, length),
            }
        }
        if line.session.endpoint != from {
            tracing::debug!("peer {} is at {from} now", peer.key);
            line.session.endpoint = from;
        }
    }

    /// Sends the first bytes of `plain`.
    fn reply(&mut self, to: SocketAddr, length: usize) {
        let reply = self.plain.get(..length).unwrap_or_default();
        self.replies.add(to, length, |room| copy(reply, room));
    }

    /// Begins a handshake with a peer if none is under way, unless many have begun already: anybody can have it done.
    fn greet(&mut self, line: &mut Line<'_>) {
        let Inbound { replies, greetings, .. } = self;
        if *greetings > 0 {
            replies.add(line.session.endpoint, 0, |room| {
                let written = line.greet(room);
                *greetings -= usize::from(written > 0);
                written
            });
        }
    }

    /// Whose datagram it claims to be. One that asks for a handshake without having earned it is answered with a cookie.
    fn sender<'p>(&mut self, peers: &'p Peers, datagram: &[u8], from: SocketAddr) -> Option<&'p Arc<Peer>> {
        let identity = &self.shared.identity;
        let mut cookie = [0; 64];
        match identity.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(message)) => {
                let half = parse_handshake_anon(&identity.private, &identity.public, &message).ok()?;
                let peer = peers.by_key(&half.peer_static_public);
                if peer.is_none() {
                    tracing::debug!("a handshake from {from} by a key that no node has");
                }
                peer
            }
            Ok(Packet::HandshakeResponse(message)) => peers.by_receiver(message.receiver_idx),
            Ok(Packet::PacketCookieReply(message)) => peers.by_receiver(message.receiver_idx),
            Ok(Packet::PacketData(message)) => peers.by_receiver(message.receiver_idx),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                self.replies.add(from, cookie.len(), |room| copy(cookie, room));
                None
            }
            Err(_) => None,
        }
    }

    fn tick(&mut self) {
        self.shared.identity.limiter.reset_count();
        let asleep = self.shared.keep_awake(|session| {
            let (to, mut lives) = (session.endpoint, false);
            self.replies.add(to, 0, |room| {
                let written = session.tick(self.shared.rest, room);
                lives = written.is_some();
                written.unwrap_or_default()
            });
            lives
        });
        self.shared.asleep.fetch_add(asleep, Ordering::Relaxed);
        self.greetings = GREETINGS;
        for peer in self.shared.newcomers(GREETINGS) {
            self.greet(&mut Line::new(self.shared, &peer));
        }
    }

    fn flush(&mut self) {
        self.merge.flush(&mut |bytes| self.shared.deliver(bytes));
        self.replies.flush();
    }
}

fn copy(from: &[u8], room: &mut [u8]) -> usize {
    room.get_mut(..from.len()).map_or(0, |room| {
        room.copy_from_slice(from);
        from.len()
    })
}
