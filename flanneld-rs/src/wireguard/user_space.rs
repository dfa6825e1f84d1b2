//! WireGuard in this process, for kernels that have none: a TUN device of the same name, a socket, and a thread for each
//! direction. The protocol is a library's; here is what moves the packets.
//!
//! The device is persistent: between two lives of the daemon its routes hold, and packets are dropped in it, never sent
//! in clear text.

mod checksum;
mod datagrams;
mod inbound;
mod merge;
mod outbound;
mod peers;
mod segment;
mod session;

use kernel::tun::Tun;
use kernel::wireguard::{Found, Interface, PublicKey, TunnelSocket, peer_changes};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use peers::{Identity, Peer, Peers};
use session::Session;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A handshake that has gone unanswered for so long is worth telling: it is repeated every 5 s.
const PATIENCE: Duration = Duration::from_secs(12);
/// Sessions whose memory, 15 KB each, is worth looking for all over the heap, and how often at most.
const MANY: usize = 200;
const SELDOM: Duration = Duration::from_secs(5);

/// Carries packets one way until it is told to stop.
type Direction = fn(&Shared, &PipeReader);

/// A running tunnel device. Dropping it ends its threads; the TUN device stays.
pub(super) struct Device {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// closed to end the threads
    stop: Option<PipeWriter>,
    port: u16,
    public_key: PublicKey,
    /// when the allocator last gave back what sessions had
    given_back: Option<Instant>,
}

/// What the threads of a device share.
struct Shared {
    tun: Tun,
    socket: TunnelSocket,
    identity: Identity,
    peers: RwLock<Arc<Peers>>,
    /// to be greeted
    newcomers: Mutex<VecDeque<Arc<Peer>>>,
    /// sessions that have a clock: those that do not sleep
    awake: Mutex<Vec<Weak<Mutex<Session>>>>,
    /// sessions that have fallen asleep since the allocator gave back what they had
    asleep: AtomicUsize,
    /// after so long without a packet a session sleeps
    rest: Duration,
    /// the underlay takes bundles of datagrams
    segmentation: AtomicBool,
    /// why the device carries nothing any more
    ended: Mutex<Option<String>>,
    /// the last failure to send
    unsent: Mutex<Option<(SocketAddr, Errno)>>,
}

impl Device {
    /// Takes the TUN device `name`, which exists, and listens. It has no peers yet. What sessions need in memory is given back
    /// when nothing has moved in them for `rest`.
    pub(super) fn start(name: &str, tunnel: &Interface, rest: Duration) -> kernel::Result<Self> {
        let shared = Arc::new(Shared {
            tun: Tun::open_with_offload(name)?,
            socket: TunnelSocket::bind(tunnel.port)?,
            identity: Identity::new(&tunnel.private_key),
            peers: RwLock::default(),
            newcomers: Mutex::default(),
            awake: Mutex::default(),
            asleep: AtomicUsize::default(),
            rest,
            segmentation: AtomicBool::new(true),
            ended: Mutex::default(),
            unsent: Mutex::default(),
        });
        let failed = |error: std::io::Error| kernel::Error::io(format!("starting the threads of {name}"), &error);
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let mut device = Device {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            stop: Some(writer),
            port: tunnel.port,
            public_key: tunnel.public_key,
            given_back: None,
        };
        for (direction, run) in [("out", outbound::run as Direction), ("in", inbound::run)] {
            let (shared, reader) = (Arc::clone(&shared), reader.try_clone().map_err(failed)?);
            let thread = std::thread::Builder::new().name(format!("{name}-{direction}"));
            device.threads.push(thread.spawn(move || run(&shared, &reader)).map_err(failed)?);
        }
        Ok(device)
    }

    /// Whether this device can become `wanted` by a change of its peers alone.
    pub(super) fn is_of(&self, wanted: &Interface) -> bool {
        (self.port, self.public_key) == (wanted.port, wanted.public_key) && lock(&self.shared.ended).is_none()
    }

    /// Brings the peers to what `wanted` says, see [`kernel::wireguard::WireGuard::ensure`]. Returns the number of changes.
    pub(super) fn ensure(&mut self, wanted: &Interface, moved: &BTreeSet<PublicKey>) -> usize {
        self.give_back();
        let present = self.shared.peers();
        // One by one: thousands are not to be in memory twice.
        let mut changes = peer_changes(present.keys(), |key| present.tell(key), &wanted.peers, moved).peekable();
        if changes.peek().is_none() {
            return 0;
        }
        let mut next = Peers::clone(&present);
        let (number, newcomers) = next.change(&self.shared.identity, changes);
        *self.shared.peers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        lock(&self.shared.newcomers).extend(newcomers);
        number
    }

    /// Has the allocator give back what sessions had that sleep. Not in the threads that carry packets: it takes milliseconds.
    fn give_back(&mut self) {
        let is_due = self.given_back.is_none_or(|last| last.elapsed() >= SELDOM);
        if is_due && self.shared.asleep.load(Ordering::Relaxed) >= MANY {
            self.shared.asleep.store(0, Ordering::Relaxed);
            self.given_back = Some(Instant::now());
            kernel::memory::give_back();
        }
    }

    /// The peers as they are.
    pub(super) fn found(&self) -> BTreeMap<PublicKey, Found> {
        self.shared.peers().found()
    }

    /// How many sessions there are that do not sleep.
    pub(super) fn awake(&self) -> usize {
        self.shared.peers().iter().filter(|peer| !peer.session().sleeps()).count()
    }

    /// What people should know: peers that do not answer, or cannot for the clock of this node, and what cannot be sent.
    pub(super) fn complaints(&self) -> Vec<String> {
        let (mut complaints, mut set_back) = (Vec::new(), Vec::new());
        for peer in self.shared.peers().iter() {
            let session = peer.session();
            set_back.extend(session.set_back());
            if let Some(since) = session.unanswered.filter(|since| since.elapsed() > PATIENCE) {
                let seconds = since.elapsed().as_secs();
                complaints.push(format!("{} at {} answers no handshake for {seconds} s", peer.key, session.endpoint));
            }
        }
        complaints.sort();
        if let Some(longest) = set_back.iter().max() {
            let (number, seconds) = (set_back.len(), longest.as_secs().max(1));
            let clock =
                format!("the clock was set back: {number} peers refuse handshakes from here for {seconds} s more");
            complaints.insert(0, clock);
        }
        if let Some((to, errno)) = *lock(&self.shared.unsent) {
            complaints.push(format!("sending to {to}: {errno}"));
        }
        complaints
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // It ended by a panic, of which it has told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn peers(&self) -> Arc<Peers> {
        Arc::clone(&self.peers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Up to `number` of those whom nobody has greeted yet.
    fn newcomers(&self, number: usize) -> Vec<Arc<Peer>> {
        let mut newcomers = lock(&self.newcomers);
        let number = number.min(newcomers.len());
        newcomers.drain(..number).collect()
    }

    /// Takes note that the session with a peer needs a clock from now on.
    fn wake(&self, peer: &Peer) {
        lock(&self.awake).push(Arc::downgrade(peer.shared_session()));
    }

    /// Shows `look` all sessions that have a clock; those for which it returns false need none any more. Returns their number.
    /// Not under the lock, which others take while they have that of a session.
    fn keep_awake(&self, mut look: impl FnMut(&mut Session) -> bool) -> usize {
        let mut awake = std::mem::take(&mut *lock(&self.awake));
        let before = awake.len();
        awake.retain(|session| session.upgrade().is_some_and(|session| look(&mut lock(&session))));
        let asleep = before - awake.len();
        lock(&self.awake).append(&mut awake);
        asleep
    }

    /// Waits for something to read, at most for `limit`. False: the thread shall end.
    fn wait(&self, source: &impl AsFd, stop: &PipeReader, limit: Option<Duration>) -> bool {
        // A millisecond more than asked for: rounding down would spin.
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let mut sources =
            [PollFd::new(source.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, limit) {
            Ok(_) | Err(Errno::EINTR) => {
                let [_, stop] = &sources;
                lock(&self.ended).is_none() && stop.revents().is_none_or(|events| events.is_empty())
            }
            Err(errno) => {
                self.end(&format!("waiting for packets: {errno}"));
                false
            }
        }
    }

    /// Gives a packet, with its offload header, to the kernel. It drops those that it has no use for.
    fn deliver(&self, packet: &[u8]) {
        if let Err(error) = self.tun.write(packet) {
            tracing::trace!("the device refuses a packet: {error}");
        }
    }

    fn sent(&self, outcome: Result<(), (SocketAddr, Errno)>) {
        let mut unsent = lock(&self.unsent);
        match outcome {
            Ok(()) => *unsent = None,
            Err(failure) => *unsent = Some(failure),
        }
    }

    fn end(&self, reason: &str) {
        lock(&self.ended).get_or_insert_with(|| reason.to_owned());
        tracing::warn!("{}: {reason}", self.tun.name());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
