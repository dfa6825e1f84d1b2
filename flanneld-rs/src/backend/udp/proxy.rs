//! Carries packets between a TUN device and the other nodes: one thread for each direction, one batch of buffers each, and
//! nothing allocated for a packet.
//!
//! On the wire a datagram is the IP packet itself, as flannel has it. Either proxy counts as a router.

use super::packet::{self, MAX_ANSWER};
use super::routes::Routes;
use crate::family::Family;
use ipnetwork::IpNetwork;
use kernel::batch::{self, Batch};
use kernel::tun::Tun;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Another node's packets may be longer than our own: its underlay need not have our MTU. In bytes.
const LONGEST: usize = 9216;
/// Packets read in a row, so that none waits for more than its batch.
const ROW: usize = 64;
/// ICMP errors in a second; who asks more often is told less often (RFC 1812 section 4.3.2.8).
const ANSWERS_PER_SECOND: u32 = 100;

/// What a proxy of one family has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// the family of the packets, and of the addresses between nodes
    pub family: Family,
    /// name of the TUN device
    pub device: String,
    /// where the other nodes send to, and what ours come from
    pub bind: SocketAddr,
    /// this node's subnet: nothing for others is taken in
    pub own: IpNetwork,
    /// the other nodes' subnets, and where to send what is for them
    pub nodes: BTreeMap<IpNetwork, SocketAddr>,
}

/// A running proxy; dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    plan: Plan,
    shared: Arc<Shared>,
    /// hung up to wake the threads for their end
    line: Option<UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

/// What a thread does until it is told to end.
type Lane = fn(&Shared) -> io::Result<()>;

#[derive(Debug)]
struct Shared {
    family: Family,
    own: IpNetwork,
    device: Tun,
    socket: UdpSocket,
    /// the other end of `line`
    line: UnixStream,
    ending: AtomicBool,
    routes: Mutex<Arc<Routes>>,
    refused: AtomicU64,
}

impl Proxy {
    /// Takes device and port, and starts.
    ///
    /// # Errors
    /// Who has them already, or what else the kernel refuses.
    pub fn start(plan: &Plan) -> kernel::Result<Self> {
        let device = Tun::open(&plan.device)?;
        let socket = batch::bind(plan.bind)?;
        let failed = |error: io::Error| kernel::Error::io(format!("starting the proxy of {}", plan.device), &error);
        let (line, other_end) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared {
            family: plan.family,
            own: plan.own,
            device,
            socket,
            line: other_end,
            ending: AtomicBool::new(false),
            routes: Mutex::new(Arc::new(Routes::new(&plan.nodes))),
            refused: AtomicU64::new(0),
        });
        let mut proxy = Proxy { plan: plan.clone(), shared: shared.clone(), line: Some(line), threads: Vec::new() };
        for (name, lane) in [("udp-out", outward as Lane), ("udp-in", inward)] {
            let shared = shared.clone();
            let run = move || {
                if let Err(error) = lane(&shared) {
                    tracing::warn!("{} of {}: {error}", name, shared.device.name());
                }
            };
            proxy.threads.push(std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed)?);
        }
        Ok(proxy)
    }

    /// Whether it does what `plan` says but for the nodes, and still works.
    pub fn serves(&self, plan: &Plan) -> bool {
        let same = (self.plan.family, &self.plan.device, self.plan.bind, self.plan.own)
            == (plan.family, &plan.device, plan.bind, plan.own);
        same && self.shared.device.is_attached() && self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Takes over the nodes of `plan`.
    pub fn set_nodes(&mut self, plan: &Plan) {
        if self.plan.nodes != plan.nodes {
            *self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Routes::new(&plan.nodes));
            self.plan.nodes.clone_from(&plan.nodes);
        }
    }

    /// How many packets the kernel has refused to send since the last call.
    pub fn take_refused(&self) -> u64 {
        self.shared.refused.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.line = None;
        for thread in self.threads.drain(..) {
            // It has said itself what was wrong.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Waits until there is something to read; false: it is time to end.
    fn wait(&self, source: BorrowedFd<'_>) -> io::Result<bool> {
        let mut sources = [PollFd::new(source, PollFlags::POLLIN), PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP;
        let found = |at: usize| sources.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        if self.is_ending() {
            return Ok(false);
        }
        // Without packets beside it this would be said for ever: the device is gone.
        if found(0).intersects(broken) && !found(0).contains(PollFlags::POLLIN) {
            return Err(nix::errno::Errno::EBADFD.into());
        }
        Ok(true)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn routes(&self) -> Arc<Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// From the device to the other nodes.
fn outward(shared: &Shared) -> io::Result<()> {
    let mut batch = Batch::new(LONGEST);
    let mut answers = Answers::new();
    while shared.wait(shared.device.as_fd())? {
        let mut emptied = false;
        while !emptied && !shared.is_ending() {
            let routes = shared.routes();
            emptied = read_row(shared, &routes, &mut batch, &mut answers)?;
            let refused = batch.send(&shared.socket);
            shared.refused.fetch_add(refused.count as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Reads what there is into the batch; true if it was all.
fn read_row(shared: &Shared, routes: &Routes, batch: &mut Batch, answers: &mut Answers) -> io::Result<bool> {
    for _packet in 0..ROW {
        let Some(buffer) = batch.vacant() else { return Ok(false) };
        let length = match shared.device.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let packet = buffer.get_mut(..length).unwrap_or_default();
        let Some(addresses) = packet::addresses(shared.family, packet) else { continue };
        match routes.find(addresses.destination) {
            Some(node) if packet::pass_router(shared.family, packet) => batch.push(length, node),
            Some(_) => {}
            None => answers.send(&shared.device, packet),
        }
    }
    Ok(false)
}

/// From the other nodes to the device.
fn inward(shared: &Shared) -> io::Result<()> {
    let mut batch = Batch::new(LONGEST);
    while shared.wait(shared.socket.as_fd())? {
        // An error is the answer to something that was sent earlier: no reason to stop, nor to wait.
        while !shared.is_ending() && batch.receive(&shared.socket).is_ok() {
            for packet in batch.datagrams() {
                let ours = packet::addresses(shared.family, packet)
                    .is_some_and(|addresses| shared.own.contains(addresses.destination));
                if ours && packet::pass_router(shared.family, packet) {
                    write(&shared.device, packet)?;
                }
            }
        }
    }
    Ok(())
}

/// Gives a packet to the kernel. What it does not take is lost, as on any wire; that the device is gone is an error.
fn write(device: &Tun, packet: &[u8]) -> io::Result<()> {
    match device.write(packet) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EBADFD) => Err(error),
        _ => Ok(()),
    }
}

/// ICMP errors, in moderation.
struct Answers {
    buffer: [u8; MAX_ANSWER],
    left: u32,
    second: Instant,
}

impl Answers {
    fn new() -> Self {
        Answers { buffer: [0; MAX_ANSWER], left: ANSWERS_PER_SECOND, second: Instant::now() }
    }

    /// Tells the sender of `packet` that there is no way to its destination.
    fn send(&mut self, device: &Tun, packet: &[u8]) {
        if self.second.elapsed() > Duration::from_secs(1) {
            (self.left, self.second) = (ANSWERS_PER_SECOND, Instant::now());
        }
        if self.left == 0 {
            return;
        }
        if let Some(length) = packet::unreachable(packet, &mut self.buffer) {
            self.left -= 1;
            // Lost like any packet if it is not taken.
            let _ = device.write(self.buffer.get(..length).unwrap_or_default());
        }
    }
}
