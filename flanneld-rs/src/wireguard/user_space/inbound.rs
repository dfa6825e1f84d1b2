//! From the peers to the device: datagrams are taken, verified, decrypted, and handed to the kernel; handshakes are
//! answered, and the clock of all sessions is kept.

use super::Shared;
use super::datagrams::Datagrams;
use super::merge::Merge;
use super::outbound::greet;
use super::peers::{Peer, Peers};
use defguard_boringtun::noise::handshake::parse_handshake_anon;
use defguard_boringtun::noise::{Packet, TunnResult};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use std::io::{IoSliceMut, PipeReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Receptions, each of up to 64 KiB, before what was decrypted must go on.
const BURST: usize = 32;
/// The message type of a cookie reply (section 5.4.7 of the WireGuard paper).
const COOKIE: u8 = 3;
/// The largest datagram, or bundle of datagrams.
const LONGEST: usize = 65_536;
/// How often the clocks of the sessions are looked at. They count in seconds.
const TICK: Duration = Duration::from_millis(500);
/// Handshakes that are begun with new peers in one tick: what they cost others is rationed there.
pub(super) const GREETINGS: usize = 200;

/// Carries packets until the device is gone or `stop` is closed.
pub(super) fn run(shared: &Shared, stop: &PipeReader) {
    let mut buffer = vec![0; LONGEST];
    let mut inbound = Inbound { shared, plain: vec![0; LONGEST], merge: Merge::new(), replies: Datagrams::new(shared) };
    let mut next_tick = Instant::now();
    loop {
        let pause = next_tick.saturating_duration_since(Instant::now());
        if !shared.wait(&shared.socket.socket, stop, Some(pause)) {
            return;
        }
        let peers = shared.peers();
        if next_tick <= Instant::now() {
            next_tick = Instant::now() + TICK;
            inbound.tick(&peers);
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
}

/// What came of a datagram; lengths are of what was written to the room for it.
enum Outcome {
    Nothing,
    Authentic,
    Reply(usize),
    Packet(usize, IpAddr),
}

impl From<TunnResult<'_>> for Outcome {
    fn from(result: TunnResult<'_>) -> Self {
        match result {
            TunnResult::Done => Outcome::Authentic,
            TunnResult::Err(_) => Outcome::Nothing,
            TunnResult::WriteToNetwork(bytes) => Outcome::Reply(bytes.len()),
            TunnResult::WriteToTunnelV4(bytes, from) => Outcome::Packet(bytes.len(), from.into()),
            TunnResult::WriteToTunnelV6(bytes, from) => Outcome::Packet(bytes.len(), from.into()),
        }
    }
}

impl Inbound<'_> {
    fn take(&mut self, peers: &Peers, datagram: &[u8], from: SocketAddr) {
        let Some(peer) = self.sender(peers, datagram, from) else { return };
        let mut session = peer.session();
        let outcome = session.tunnel.decapsulate(Some(from.ip()), datagram, &mut self.plain).into();
        match outcome {
            Outcome::Nothing => return,
            // It says where a handshake must prove to come from, and nothing of where the peer is.
            Outcome::Authentic if datagram.first() == Some(&COOKIE) => return,
            Outcome::Authentic => {}
            Outcome::Packet(length, source) => {
                let is_theirs = peers.by_address(source).is_some_and(|owner| owner.index == peer.index);
                if is_theirs {
                    let packet = self.plain.get(..length).unwrap_or_default();
                    self.merge.add(packet, &mut |bytes| self.shared.deliver(bytes));
                }
            }
            Outcome::Reply(length) => {
                let reply = self.plain.get(..length).unwrap_or_default();
                self.replies.add(from, length, |room| copy(reply, room));
                if reply.first() == Some(&COOKIE) {
                    return;
                }
                // What was kept until there was a session.
                while let Outcome::Reply(length) = session.tunnel.decapsulate(None, &[], &mut self.plain).into() {
                    let reply = self.plain.get(..length).unwrap_or_default();
                    self.replies.add(from, length, |room| copy(reply, room));
                }
            }
        }
        if session.endpoint != from {
            tracing::debug!("peer {} is at {from} now", peer.key);
            session.endpoint = from;
        }
        session.unanswered = None;
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

    fn tick(&mut self, peers: &Peers) {
        self.shared.identity.limiter.reset_count();
        for peer in peers.iter() {
            let mut session = peer.session();
            let to = session.endpoint;
            self.replies.add(to, 0, |room| match session.tunnel.update_timers(room) {
                TunnResult::WriteToNetwork(bytes) => bytes.len(),
                _ => 0,
            });
        }
        for peer in self.shared.newcomers(GREETINGS) {
            greet(&mut peer.session(), &mut self.replies);
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
