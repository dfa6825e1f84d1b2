//! A steady stream of numbered datagrams: how many were lost, and how long nothing came through.

use crate::Result;
use crate::probe::{PORT, QUEUE, queue, socket_towards};
use kernel::netns::Netns;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long answers are waited for after the last request, on a machine that lets the pods wait for their turn.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// The longest wait for the next answer.
const LOOK: Duration = Duration::from_millis(50);

/// How long a number of requests or answers is waited for while the stream runs.
const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// A running stream; [`Stream::stop`] ends it.
#[derive(Debug)]
pub struct Stream {
    progress: Arc<Progress>,
    thread: JoinHandle<Result<Report>>,
}

/// What both sides of a running stream know.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicBool,
    /// no request follows
    over: AtomicBool,
    sent: AtomicUsize,
    answered: AtomicUsize,
}

/// What became of the packets of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// requests sent
    pub sent: usize,
    /// requests without an answer
    pub lost: usize,
    /// from the first lost request of a gap to the next answered one, for the longest gap; a gap at the end counts up to
    /// the last request
    pub longest_outage: Duration,
}

impl Stream {
    /// Starts to ask `target` from inside `network`, once per `interval`; returns after the first answer.
    pub fn start(network: &Netns, target: IpAddr, interval: Duration) -> Result<Self> {
        let network = network.try_clone()?;
        crate::eventually(Duration::from_secs(5), || {
            crate::probe::ask(&network, target, Duration::from_millis(200)).map(|_| ())
        })?;
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread = std::thread::spawn(move || network.run(|| run(target, interval, &shared))?);
        let stream = Stream { progress, thread };
        stream.wait_for_answers(1)?;
        Ok(stream)
    }

    /// Waits until `number` more requests are answered than when this was called.
    pub fn wait_for_answers(&self, number: usize) -> Result<()> {
        wait_for(&self.progress.answered, number, "answers")
    }

    /// Waits until `number` more requests are sent than when this was called: at least `number` intervals of time, and more
    /// on a machine that lets the stream stand still.
    pub fn wait_for_requests(&self, number: usize) -> Result<()> {
        wait_for(&self.progress.sent, number, "requests")
    }

    /// Ends the stream, waits a moment for answers that are on their way, and counts.
    pub fn stop(self) -> Result<Report> {
        self.progress.done.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the stream's thread panicked")?
    }
}

fn wait_for(counter: &AtomicUsize, number: usize, what: &str) -> Result<()> {
    let goal = counter.load(Ordering::Relaxed) + number;
    crate::eventually(COUNT_LIMIT, || match counter.load(Ordering::Relaxed) {
        now if now >= goal => Ok(()),
        now => Err(format!("{now} of {goal} {what}").into()),
    })
}

fn run(target: IpAddr, interval: Duration, progress: &Progress) -> Result<Report> {
    let socket = socket_towards(target)?;
    socket.set_read_timeout(Some(LOOK))?;
    queue(&socket, QUEUE)?;
    let receiver = socket.try_clone()?;
    let (answered, sent) = std::thread::scope(|scope| {
        let answered = scope.spawn(|| receive(&receiver, progress));
        let sent = send(&socket, target, interval, progress);
        progress.over.store(true, Ordering::Relaxed);
        (answered.join(), sent)
    });
    Ok(Report::of(&sent, &answered.map_err(|_| "the receiver panicked")?))
}

/// The times of all requests; a request that the kernel refused (no route) is one that gets no answer.
///
/// A stream that stood still does not make up for it: a burst would be lost in queues, and say nothing of the path.
fn send(socket: &UdpSocket, target: IpAddr, interval: Duration, progress: &Progress) -> Vec<Instant> {
    let mut sent = Vec::new();
    let mut next = Instant::now();
    while !progress.done.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(Instant::now());
        let _ = socket.send_to(&number.to_be_bytes(), SocketAddr::new(target, PORT));
        progress.sent.store(sent.len(), Ordering::Relaxed);
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

/// The numbers that were answered. When the last one is, and nothing more comes, the rest is lost.
fn receive(socket: &UdpSocket, progress: &Progress) -> Vec<u64> {
    let mut answered = Vec::new();
    let mut answer = [0; 64];
    let mut end: Option<Instant> = None;
    loop {
        match socket.recv(&mut answer) {
            Ok(size) if size > 8 => {
                answered.extend(answer.first_chunk::<8>().map(|number| u64::from_be_bytes(*number)));
                progress.answered.store(answered.len(), Ordering::Relaxed);
            }
            Err(_) if progress.over.load(Ordering::Relaxed) => {
                let last = (progress.sent.load(Ordering::Relaxed) as u64).checked_sub(1);
                let is_late = *end.get_or_insert_with(|| Instant::now() + STRAGGLERS) <= Instant::now();
                if is_late || answered.iter().rev().take(8).any(|number| Some(*number) == last) {
                    return answered;
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

impl Report {
    fn of(sent: &[Instant], answered: &[u64]) -> Self {
        let answered: std::collections::BTreeSet<u64> = answered.iter().copied().collect();
        let (mut lost, mut longest, mut gap) = (0, Duration::ZERO, None);
        for (number, at) in (0u64..).zip(sent) {
            if answered.contains(&number) {
                longest = longest.max(gap.take().map_or(Duration::ZERO, |since| at.duration_since(since)));
            } else {
                lost += 1;
                gap.get_or_insert(*at);
            }
        }
        if let (Some(since), Some(last)) = (gap, sent.last()) {
            longest = longest.max(last.duration_since(since));
        }
        Report { sent: sent.len(), lost, longest_outage: longest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_losses_and_the_longest_gap() {
        let start = Instant::now();
        let sent: Vec<Instant> = (0..10).map(|number| start + Duration::from_millis(10 * number)).collect();
        let report = Report::of(&sent, &[0, 1, 3, 7, 6, 8, 9]);
        assert_eq!(report, Report { sent: 10, lost: 3, longest_outage: Duration::from_millis(20) });
        assert_eq!(Report::of(&sent, &[0]).longest_outage, Duration::from_millis(80));
        assert_eq!(Report::of(&sent, &(0..10).collect::<Vec<_>>()).longest_outage, Duration::ZERO);
    }
}
