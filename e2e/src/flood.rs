//! Many numbered datagrams a second from one pod to another: which of them never came. One way, so that nothing but the
//! network stands between the two ends.

use crate::probe::queue;
use crate::{Result, eventually};
use kernel::netns::Netns;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// They are sent in as many portions: a thread cannot sleep for less with any precision.
const PORTIONS_PER_SECOND: u32 = 1000;
/// What a receiver that gets no processor for some seconds must hold, in bytes.
const BUFFER: usize = 64 << 20;
/// What is on its way has come by then.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// The way must be there within, and portions must arrive within.
const LIMIT: Duration = Duration::from_secs(30);

/// Two threads, one at each end.
#[derive(Debug)]
pub struct Flood {
    state: Arc<State>,
    sender: JoinHandle<Result<usize>>,
    receiver: JoinHandle<Arrivals>,
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    sender_ends: AtomicBool,
    receiver_ends: AtomicBool,
    arrived: AtomicUsize,
}

/// What has come, by number.
#[derive(Debug, Default)]
struct Arrivals {
    seen: Vec<bool>,
    strangers: usize,
}

/// What became of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// how many were sent
    pub sent: usize,
    /// how many of them never came
    pub lost: usize,
    /// the number of the first of these
    pub first_lost: Option<usize>,
    /// how many came with another source address than the sender's
    pub strangers: usize,
    /// how many were sent in a second
    pub per_second: usize,
}

impl Flood {
    /// Starts to send `per_second` datagrams from `source`, an address of the namespace `from`, to `target` in `to`. What the
    /// machine has no time for is left out, and not made up for. Returns after the first arrival.
    pub fn start((from, source): (&Netns, IpAddr), (to, target): (&Netns, IpAddr), per_second: u32) -> Result<Self> {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let receiver = to.run(|| UdpSocket::bind((any, 0)))??;
        queue(&receiver, BUFFER)?;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let sender = from.run(|| UdpSocket::bind((source, 0)))??;
        let target = SocketAddr::new(target, receiver.local_addr()?.port());
        eventually(LIMIT, || {
            sender.send_to(&u64::MAX.to_be_bytes(), target)?;
            Ok(receiver.recv(&mut [0; 8])?)
        })?;
        let state = Arc::new(State::default());
        let (here, there) = (Arc::clone(&state), Arc::clone(&state));
        let receiver = std::thread::spawn(move || receive(&receiver, source, &there));
        let portion = (per_second / PORTIONS_PER_SECOND).max(1);
        let sender = std::thread::spawn(move || send(&sender, target, portion, &here));
        let flood = Flood { state, sender, receiver, start: Instant::now() };
        flood.wait_for_arrivals(1)?;
        Ok(flood)
    }

    /// Waits until so many more have come than when this was called.
    pub fn wait_for_arrivals(&self, number: usize) -> Result<()> {
        let goal = self.state.arrived.load(Ordering::Relaxed) + number;
        eventually(LIMIT, || match self.state.arrived.load(Ordering::Relaxed) {
            now if now >= goal => Ok(()),
            now => Err(format!("{now} of {goal} datagrams have arrived").into()),
        })
    }

    /// Ends it, and counts.
    pub fn stop(self) -> Result<Report> {
        self.state.sender_ends.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| "the sender panicked")??;
        let duration = self.start.elapsed();
        std::thread::sleep(STRAGGLERS);
        self.state.receiver_ends.store(true, Ordering::Relaxed);
        let arrivals = self.receiver.join().map_err(|_| "the receiver panicked")?;
        Ok(arrivals.report(sent, duration))
    }
}

/// How many were sent. One that the kernel refuses (no route) is one that never comes.
fn send(socket: &UdpSocket, target: SocketAddr, portion: u32, state: &State) -> Result<usize> {
    let interval = Duration::from_secs(1) / PORTIONS_PER_SECOND;
    let mut number = 0;
    let mut next = Instant::now();
    while !state.sender_ends.load(Ordering::Relaxed) {
        for _ in 0..portion {
            let _ = socket.send_to(&u64::try_from(number)?.to_be_bytes(), target);
            number += 1;
        }
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(number)
}

/// Until it is told to end and nothing is left to be read.
fn receive(socket: &UdpSocket, source: IpAddr, state: &State) -> Arrivals {
    let mut arrivals = Arrivals::default();
    let mut datagram = [0; 8];
    loop {
        match socket.recv_from(&mut datagram) {
            Ok((8, from)) => {
                arrivals.take_in(u64::from_be_bytes(datagram), from.ip() == source);
                state.arrived.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_) if state.receiver_ends.load(Ordering::Relaxed) => return arrivals,
            Err(_) => {}
        }
    }
}

impl Arrivals {
    fn take_in(&mut self, number: u64, is_from_source: bool) {
        // The first ones only looked for the way.
        let Some(index) = usize::try_from(number).ok().filter(|_| number != u64::MAX) else { return };
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        if let Some(seen) = self.seen.get_mut(index) {
            *seen = true;
        }
        self.strangers += usize::from(!is_from_source);
    }

    fn report(mut self, sent: usize, duration: Duration) -> Report {
        self.seen.resize(sent, false);
        let lost: Vec<usize> = (0..).zip(&self.seen).filter(|(_, seen)| !**seen).map(|(number, _)| number).collect();
        let milliseconds = usize::try_from(duration.as_millis()).unwrap_or(usize::MAX).max(1);
        Report {
            sent,
            lost: lost.len(),
            first_lost: lost.first().copied(),
            strangers: self.strangers,
            per_second: sent.saturating_mul(1000) / milliseconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_is_counted_by_number() {
        let mut arrivals = Arrivals::default();
        for number in [u64::MAX, 0, 4, 1, 1, 3] {
            arrivals.take_in(number, number != 4);
        }
        let report = arrivals.report(7, Duration::from_millis(2));
        assert_eq!(report, Report { sent: 7, lost: 3, first_lost: Some(2), strangers: 1, per_second: 3500 });
    }
}
