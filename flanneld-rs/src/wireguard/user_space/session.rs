//! What is between this node and one peer. The protocol's part of it is large, and there only while something moves: it is made
//! for the first packet to the peer or handshake from it, and given back when its keys are worth nothing any more.

use super::Shared;
use super::peers::{Identity, Peer};
use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519;
use kernel::wireguard::{PeerSettings, SecretKey};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of a handshake initiation (section 5.4.2 of the WireGuard paper).
const INITIATION: usize = 148;
/// Message types (section 5.4).
const INITIATES: u8 = 1;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Room for any handshake message.
const ROOM: usize = 256;

/// What changes with packets. It outlives the protocol's part.
pub(super) struct Session {
    /// where the last authentic packet came from, or is expected
    pub(super) endpoint: SocketAddr,
    /// since when handshakes go unanswered
    pub(super) unanswered: Option<Instant>,
    /// the latest time that an initiation was stamped with: the peer takes none that is older
    stamped: Option<SystemTime>,
    preshared_key: Option<SecretKey>,
    /// seconds; 0: none
    keepalive: u16,
    /// the last initiation of the peer that was answered
    answered: Option<Box<[u8; INITIATION]>>,
    tunnel: Option<Box<Tunnel>>,
    /// somebody looks at the clock for it
    clocked: bool,
}

/// The protocol, and how long nothing has moved.
struct Tunnel {
    protocol: Tunn,
    made: (SystemTime, Instant),
    /// there was a handshake, and there may be keys
    heard: bool,
    /// since the last look at the clock
    moved: bool,
    quiet: Instant,
    /// the protocol may have packets that wait for a session
    keeps: bool,
}

/// What came of a datagram; lengths are of what was written to the room for it.
pub(super) enum Outcome {
    Nothing,
    /// data of a session that nobody here knows any more
    Stale,
    Authentic,
    /// a message that says where a handshake must prove to come from, and nothing of where the peer is
    Cookie(usize),
    Reply(usize),
    Packet(usize, IpAddr),
}

impl Session {
    /// With a peer that is expected at `endpoint`.
    pub(super) fn new(endpoint: SocketAddr) -> Self {
        Session {
            endpoint,
            unanswered: None,
            stamped: None,
            preshared_key: None,
            keepalive: 0,
            answered: None,
            tunnel: None,
            clocked: false,
        }
    }

    /// Takes over settings. The protocol's part takes none: it ends if they differ, and is made anew.
    pub(super) fn set(&mut self, settings: &PeerSettings) {
        self.endpoint = settings.endpoint.unwrap_or(self.endpoint);
        if (&self.preshared_key, self.keepalive) != (&settings.preshared_key, settings.keepalive) {
            (self.preshared_key, self.keepalive) = (settings.preshared_key.clone(), settings.keepalive);
            (self.tunnel, self.unanswered) = (None, None);
        }
    }

    pub(super) fn preshared_key(&self) -> Option<&SecretKey> {
        self.preshared_key.as_ref()
    }

    pub(super) fn keepalive(&self) -> u16 {
        self.keepalive
    }

    /// Nothing has moved for long, and keys are forgotten.
    pub(super) fn sleeps(&self) -> bool {
        self.tunnel.is_none()
    }

    /// By how much a handshake that began now would be stamped too early for the peer. It happens where the clock on the wall was
    /// set back in the sleep: nothing helps but to wait, or a handshake that the peer begins.
    pub(super) fn set_back(&self) -> Option<Duration> {
        self.behind(self.tunnel.as_ref().map_or_else(SystemTime::now, |tunnel| tunnel.stamp()))
    }

    fn behind(&self, stamp: SystemTime) -> Option<Duration> {
        self.stamped?.duration_since(stamp).ok().filter(|behind| !behind.is_zero())
    }

    /// The age of the session in use.
    pub(super) fn handshake(&self) -> Option<Duration> {
        self.tunnel.as_ref()?.protocol.time_since_last_handshake()
    }

    /// Lets time pass: writes what is due into `room` and returns its length, or none if no more will ever be due. The protocol's
    /// part is given back when it has given up, or nothing has moved for `rest` nor waits, unless it must keep the session alive.
    pub(super) fn tick(&mut self, rest: Duration, room: &mut [u8]) -> Option<usize> {
        self.clocked = false;
        let tunnel = self.tunnel.as_mut()?;
        let mut written = length(tunnel.protocol.update_timers(room));
        if std::mem::take(&mut tunnel.moved) || written > 0 {
            tunnel.quiet = Instant::now();
        }
        let (quiet, expired) = (tunnel.quiet.elapsed(), tunnel.protocol.is_expired());
        if self.keepalive > 0 {
            // The library gives up a peer that was away for 90 s until there is something to send. This is something.
            if expired && quiet >= Duration::from_secs(self.keepalive.into()) {
                written = length(tunnel.protocol.format_handshake_initiation(room, false));
                tunnel.quiet = Instant::now();
            }
        } else if expired || quiet >= rest && !tunnel.keeps {
            // The peer is asked nothing any more.
            self.unanswered = None;
            // Where the clock on the wall was set back, the stamps of another tunnel would be older, and the peer refuse them.
            if self.behind(SystemTime::now()).is_none() {
                self.tunnel = None;
                return None;
            }
        }
        self.note(room.get(..written).unwrap_or_default());
        self.clocked = true;
        Some(written)
    }

    /// Takes note of a message that leaves.
    fn note(&mut self, message: &[u8]) {
        if message.len() == INITIATION && message.first() == Some(&INITIATES) {
            self.unanswered.get_or_insert_with(Instant::now);
            self.stamped = self.stamped.max(self.tunnel.as_ref().map(|tunnel| tunnel.stamp()));
        }
    }
}

impl Tunnel {
    fn new(identity: &Identity, peer: &Peer, session: &Session) -> Self {
        let key = x25519::PublicKey::from(peer.key.0);
        let preshared_key = session.preshared_key.as_ref().map(|key| *key.bytes());
        let keepalive = Some(session.keepalive).filter(|seconds| *seconds > 0);
        let limiter = if session.answered.is_some() { &identity.no_limiter } else { &identity.limiter };
        let private = identity.private.clone();
        let now = Instant::now();
        let made = (SystemTime::now(), now);
        let mut protocol = Tunn::new(private, key, preshared_key, keepalive, peer.index, Some(Arc::clone(limiter)));
        // Each initiation must be later than the last (section 5.1), or it is a replay. The library learns that from initiations
        // alone. The session that this one begins a second time, which nobody has the keys of, ends with the change of keys.
        if let Some(answered) = &session.answered {
            protocol.decapsulate(None, &**answered, &mut [0; ROOM]);
            protocol.set_static_private(identity.private.clone(), identity.public, Some(Arc::clone(&identity.limiter)));
        }
        Tunnel { protocol, made, heard: false, moved: false, quiet: now, keeps: false }
    }

    /// What the library stamps handshakes with: the time when the object was made, and what has passed since.
    fn stamp(&self) -> SystemTime {
        let (wall, made) = self.made;
        wall.checked_add(made.elapsed()).unwrap_or(wall)
    }
}

/// A peer while a burst of packets passes.
pub(super) struct Line<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    pub(super) session: MutexGuard<'a, Session>,
}

impl<'a> Line<'a> {
    pub(super) fn new(shared: &'a Shared, peer: &'a Peer) -> Self {
        Line { shared, peer, session: peer.session() }
    }

    /// The protocol's part, which begins here if it has to.
    fn tunnel(&mut self) -> &mut Tunnel {
        let session = &mut *self.session;
        let made = session.tunnel.take().unwrap_or_else(|| {
            if !std::mem::replace(&mut session.clocked, true) {
                self.shared.wake(self.peer);
            }
            Box::new(Tunnel::new(&self.shared.identity, self.peer, session))
        });
        session.tunnel.insert(made)
    }

    /// Encrypts a packet, or keeps it and begins a handshake; returns the number of bytes to be sent.
    pub(super) fn encrypt(&mut self, packet: &[u8], room: &mut [u8]) -> usize {
        let tunnel = self.tunnel();
        tunnel.moved = true;
        let written = length(tunnel.protocol.encapsulate(packet, room));
        let message = room.get(..written).unwrap_or_default();
        if message.first() != Some(&DATA) {
            tunnel.keeps = true;
            self.session.note(message);
        }
        written
    }

    /// Begins a handshake if none is under way; returns the number of bytes to be sent.
    pub(super) fn greet(&mut self, room: &mut [u8]) -> usize {
        let written = length(self.tunnel().protocol.format_handshake_initiation(room, false));
        self.session.note(room.get(..written).unwrap_or_default());
        written
    }

    /// Takes a datagram of which the peer is the likely sender.
    pub(super) fn decrypt(&mut self, datagram: &[u8], from: SocketAddr, room: &mut [u8]) -> Outcome {
        let kind = datagram.first().copied().unwrap_or_default();
        let slept = self.session.sleeps();
        // All else belongs to what is forgotten.
        if slept && kind != INITIATES {
            return if kind == DATA { Outcome::Stale } else { Outcome::Nothing };
        }
        let tunnel = self.tunnel();
        let outcome = match tunnel.protocol.decapsulate(Some(from.ip()), datagram, room) {
            TunnResult::Done if kind == COOKIE => Outcome::Nothing,
            TunnResult::Done => Outcome::Authentic,
            TunnResult::Err(_) if kind == DATA && !tunnel.heard => Outcome::Stale,
            TunnResult::Err(_) => Outcome::Nothing,
            TunnResult::WriteToNetwork(bytes) if bytes.first() == Some(&COOKIE) => Outcome::Cookie(bytes.len()),
            TunnResult::WriteToNetwork(bytes) => Outcome::Reply(bytes.len()),
            TunnResult::WriteToTunnelV4(bytes, from) => Outcome::Packet(bytes.len(), from.into()),
            TunnResult::WriteToTunnelV6(bytes, from) => Outcome::Packet(bytes.len(), from.into()),
        };
        if matches!(outcome, Outcome::Authentic | Outcome::Reply(_) | Outcome::Packet(..)) {
            (tunnel.moved, tunnel.heard) = (true, true);
            self.session.unanswered = None;
        } else if slept {
            // Who forges or replays an initiation, for which both public keys must be known, gets nothing that stays.
            self.session.tunnel = None;
        }
        if let (INITIATES, Outcome::Reply(_), Some(initiation)) = (kind, &outcome, datagram.first_chunk()) {
            match &mut self.session.answered {
                Some(last) => **last = *initiation,
                none => *none = Some(Box::new(*initiation)),
            }
        }
        outcome
    }

    /// The next of the packets that were kept until there was a session; returns the number of bytes to be sent, 0 for no more.
    pub(super) fn kept(&mut self, room: &mut [u8]) -> usize {
        // Who has answered a handshake has no session to send in before the other end has shown that it has one, too. To begin
        // a handshake for what waits would cross with the other's, which does the same, and so on for ever.
        let Some(tunnel) = self.session.tunnel.as_mut().filter(|tunnel| tunnel.keeps) else { return 0 };
        if tunnel.protocol.time_since_last_handshake().is_none() {
            return 0;
        }
        let written = length(tunnel.protocol.decapsulate(None, &[], room));
        tunnel.keeps = written > 0;
        written
    }
}

/// How much was written to the network.
fn length(result: TunnResult<'_>) -> usize {
    if let TunnResult::WriteToNetwork(bytes) = result { bytes.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::peers::Peers;
    use super::*;
    use kernel::wireguard::{PeerChange, PublicKey};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A peer, and what there is of a session with it after `before` has been done.
    fn session(keepalive: u16, before: impl Fn(&mut Tunnel)) -> Session {
        let identity = Identity::new(&SecretKey::private([1; 32]));
        let endpoint = "192.0.2.1:51820".parse().unwrap();
        let settings = PeerSettings { preshared_key: None, endpoint: Some(endpoint), keepalive, allowed: [].into() };
        let mut peers = Peers::default();
        peers.change(&identity, [PeerChange::Set(PublicKey([9; 32]), settings.clone())].into_iter());
        let mut session = Session::new(endpoint);
        session.set(&settings);
        for peer in peers.iter() {
            let mut tunnel = Tunnel::new(&identity, peer, &session);
            before(&mut tunnel);
            session.tunnel = Some(Box::new(tunnel));
        }
        session
    }

    fn sleeps_after(rest: Duration, mut session: Session) -> bool {
        let ticks = session.tick(rest, &mut [0; ROOM]).is_some();
        assert_eq!(session.sleeps(), !ticks, "who sleeps needs no clock");
        session.sleeps()
    }

    #[test]
    fn what_is_quiet_and_waits_for_nothing_sleeps() {
        assert!(sleeps_after(Duration::ZERO, session(0, |_| {})));
        assert!(!sleeps_after(HOUR, session(0, |_| {})));
        assert!(!sleeps_after(Duration::ZERO, session(0, |tunnel| tunnel.keeps = true)));
        assert!(!sleeps_after(Duration::ZERO, session(25, |_| {})));
    }

    /// After an initiation from a tunnel whose clock is ahead of that on the wall.
    fn initiated(ahead: Duration) -> Session {
        let mut session = session(0, |tunnel| tunnel.made.0 += ahead);
        let mut room = [0; ROOM];
        let written = length(session.tunnel.as_mut().unwrap().protocol.format_handshake_initiation(&mut room, false));
        session.note(&room[..written]);
        assert!(session.unanswered.is_some() && session.stamped.is_some());
        session
    }

    /// The peer remembers the time that the last handshake was stamped with.
    #[test]
    fn nobody_forgets_a_time_that_is_yet_to_come() {
        assert!(sleeps_after(Duration::ZERO, initiated(Duration::ZERO)));
        assert!(!sleeps_after(Duration::ZERO, initiated(HOUR)));
        let mut session = initiated(HOUR);
        assert_eq!(session.set_back(), None, "this one's stamps go on");
        session.tunnel = None;
        let set_back = session.set_back().unwrap();
        assert!(set_back > HOUR / 2 && set_back <= HOUR, "{set_back:?}");
    }

    #[test]
    fn who_is_asked_no_more_owes_no_answer() {
        for ahead in [Duration::ZERO, HOUR] {
            let mut session = initiated(ahead);
            assert!(session.tick(HOUR, &mut [0; ROOM]).is_some() && session.unanswered.is_some());
            session.tick(Duration::ZERO, &mut [0; ROOM]);
            assert_eq!(session.unanswered, None, "{ahead:?}");
        }
    }

    #[test]
    fn other_settings_end_a_session_and_another_place_does_not() {
        let mut session = session(0, |_| {});
        let elsewhere = "192.0.2.7:51820".parse().unwrap();
        let mut settings =
            PeerSettings { preshared_key: None, endpoint: Some(elsewhere), keepalive: 0, allowed: [].into() };
        session.set(&settings);
        assert_eq!((session.endpoint, session.sleeps()), (elsewhere, false));
        (settings.preshared_key, settings.endpoint) = (Some(SecretKey::new([3; 32])), None);
        session.set(&settings);
        assert_eq!((session.endpoint, session.sleeps()), (elsewhere, true));
    }
}
