//! A crowd: hundreds of attachments by all ways at once on one node, made and removed at the same time, and killed at
//! random, for as long as one wants to look. No address may be had by two, nothing may stay, nobody may wait for ever.

use super::dice::Dice;
use super::ground::Ground;
use super::killer::Killer;
use super::progress::Progress;
use super::remains::{Remains, devices};
use super::scene::Verb;
use super::ways::{Size, WAYS, Way};
use crate::Result;
use crate::runner::{Attachment, Network};
use kernel::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one plugin may take where hundreds want the processor: only a deadlock lasts longer. (A plugin waits 10 s for a
/// lock.)
const LIMIT: Duration = Duration::from_secs(180);
/// Of so many verbs one is killed.
const KILLED: u64 = 3;
/// Of so many attachments one is removed by GC.
const COLLECTED: u64 = 16;
/// Of so many attachments one is checked.
const CHECKED: u64 = 8;
/// Port of the host of the first attachment.
const FIRST_PORT: u16 = 20_000;
/// Most failures that are kept.
const ENOUGH: usize = 20;

/// How many, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// attachments at the same time
    pub parallel: usize,
    /// until no further one is made
    pub duration: Duration,
}

/// What came of the crowd.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// ADDs that succeeded
    pub added: u64,
    /// DELs that succeeded
    pub deleted: u64,
    /// GCs that succeeded
    pub collected: u64,
    /// verbs that were killed
    pub kills: u64,
    /// the longest time that one plugin took, in milliseconds
    pub longest_ms: u64,
    /// in words
    pub failures: Vec<String>,
}

/// What all have in common.
struct Crowd {
    ground: Ground,
    networks: BTreeMap<Way, Network>,
    /// system calls of ADD and DEL by way
    calls: BTreeMap<Way, [u64; 2]>,
    slots: Vec<Slot>,
    /// who has which address
    addresses: Mutex<BTreeMap<String, String>>,
    /// the plugins that run, with the time since when
    running: Mutex<BTreeMap<u32, Instant>>,
    report: Mutex<Report>,
    longest: AtomicU64,
}

/// A place for one attachment at a time.
struct Slot {
    way: Way,
    pod: Netns,
    attachment: Attachment,
    /// it is there all the time
    stays: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the crowd in, and looks at what it leaves.
pub fn run(seed: u64, shape: Shape, directory: &Path, progress: &mut Progress) -> Result<Report> {
    let (crowd, intact) = Crowd::gather(shape.parallel, directory)?;
    let start = Instant::now();
    let (everybody, end) = (&crowd, start + shape.duration);
    std::thread::scope(|scope| {
        let workers: Vec<_> = crowd
            .slots
            .iter()
            .zip(seed..)
            .map(|(slot, seed)| scope.spawn(move || everybody.come_and_go(slot, Dice::new(seed), end)))
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            crowd.break_deadlocks();
            progress.show(|| {
                let report = lock(&crowd.report);
                let (added, kills, failed) = (report.added, report.kills, report.failures.len());
                let (passed, whole) = (start.elapsed().as_secs(), shape.duration.as_secs());
                format!("{passed} of {whole} s: {added} ADDs, {kills} kills, {failed} failures")
            });
        }
    });
    for slot in crowd.slots.iter().filter(|slot| !slot.stays) {
        let left = devices(&slot.pod)?;
        if left != ["lo"] {
            crowd.fail(format!("{} left in its pod: {left:?}", slot.attachment.id));
        }
    }
    if let Some(difference) = crowd.ground.remains()?.difference(&intact) {
        crowd.fail(format!("left on the node:\n{difference}"));
    }
    let report = lock(&crowd.report).clone();
    Ok(Report { longest_ms: crowd.longest.load(Ordering::Relaxed), ..report })
}

impl Crowd {
    /// The node with one pod of each way that stays, and what it is like with nobody else.
    fn gather(parallel: usize, directory: &Path) -> Result<(Self, Remains)> {
        let ground = Ground::new(directory)?;
        let (mut networks, mut calls) = (BTreeMap::new(), BTreeMap::new());
        let mut slots = Vec::new();
        for (way, port) in WAYS.into_iter().cycle().zip(FIRST_PORT..).take(parallel) {
            let pod = Netns::create()?;
            let attachment = way.attachment(format!("pod{port}"), &pod.path(), port);
            slots.push(Slot { way, pod, attachment, stays: false });
        }
        for (way, port) in WAYS.into_iter().zip(1..) {
            let network = way.network(&ground.files, Size::Large)?;
            let pod = Netns::create()?;
            let attachment = way.attachment(format!("bystander{port}"), &pod.path(), FIRST_PORT - port);
            let [mut add, mut del] = [Killer::counting(), Killer::counting()];
            ground.runtime.add(&network, &attachment)?;
            ground.runtime.del(&network, &attachment)?;
            ground.runtime.add_by(&mut |child, config| add.handle(child, config), &network, &attachment)?;
            ground.runtime.del_by(&mut |child, config| del.handle(child, config), &network, &attachment)?;
            ground.runtime.add(&network, &attachment)?;
            calls.insert(way, [add.seen(), del.seen()]);
            networks.insert(way, network);
            slots.push(Slot { way, pod, attachment, stays: true });
        }
        let intact = ground.remains()?;
        let (addresses, running, report) = Default::default();
        let crowd = Crowd { ground, networks, calls, slots, addresses, running, report, longest: AtomicU64::default() };
        Ok((crowd, intact))
    }

    fn fail(&self, what: String) {
        let failures = &mut lock(&self.report).failures;
        if failures.len() < ENOUGH {
            failures.push(what);
        }
    }

    /// Attaches and detaches until `end`.
    fn come_and_go(&self, slot: &Slot, mut dice: Dice, end: Instant) {
        while !slot.stays && Instant::now() < end {
            if let Err(error) = self.once(slot, &mut dice) {
                self.fail(format!("{} ({}): {error}", slot.attachment.id, slot.way.name()));
                // What is in disorder would only fail again.
                return;
            }
        }
    }

    fn once(&self, slot: &Slot, dice: &mut Dice) -> Result<()> {
        let (runtime, attachment) = (&self.ground.runtime, &slot.attachment);
        let network = self.networks.get(&slot.way).ok_or("a network")?;
        if let Some(result) = self.perhaps_killed(Verb::Add, slot, network, dice)? {
            lock(&self.report).added += 1;
            let own = addresses(&result);
            for address in &own {
                if let Some(other) = lock(&self.addresses).insert(address.clone(), attachment.id.clone()) {
                    return Err(format!("ADD gives {address}, which {other} has").into());
                }
            }
            if dice.one_in(CHECKED) {
                runtime.check(network, attachment).map_err(|error| format!("CHECK: {error}"))?;
            }
            own.iter().for_each(|address| drop(lock(&self.addresses).remove(address)));
        }
        if dice.one_in(COLLECTED) {
            let others = self.slots.iter().map(|slot| &slot.attachment).filter(|other| other.id != attachment.id);
            let valid: Vec<(&str, &str)> = others.map(|other| (other.id.as_str(), other.ifname.as_str())).collect();
            runtime.gc_by(&mut |child, config| self.watched(child, config), network, &valid)?;
            lock(&self.report).collected += 1;
        }
        if self.perhaps_killed(Verb::Del, slot, network, dice)?.is_none() {
            let handling = &mut |child, config: &[u8]| self.watched(child, config);
            runtime.del_by(handling, network, attachment).map_err(|error| format!("DEL: {error}"))?;
        }
        lock(&self.report).deleted += 1;
        Ok(())
    }

    /// Runs ADD or DEL and kills it or not: at a system call or after a time. Its result; none if it was killed.
    fn perhaps_killed(&self, verb: Verb, slot: &Slot, network: &Network, dice: &mut Dice) -> Result<Option<Value>> {
        let calls = self.calls.get(&slot.way).and_then(|calls| calls.get(verb as usize)).copied().unwrap_or_default();
        let at = dice.one_in(KILLED).then(|| dice.below(calls));
        // As many microseconds, times what a system call takes where hundreds want to.
        let after = Duration::from_micros(dice.below(calls * 200));
        let by_call = dice.one_in(2);
        let mut killer = at.map(Killer::at);
        let mut killed = false;
        let mut handling = |child: Child, config: &[u8]| match killer.as_mut() {
            None => self.watched(child, config),
            Some(killer) if by_call => {
                self.timed(child.id(), || killer.handle(child, config)).inspect(|_| killed |= killer.struck().is_some())
            }
            Some(_) => self.timed(child.id(), || {
                let mut child = feed(child, config);
                std::thread::sleep(after);
                killed |= child.try_wait()?.is_none();
                child.kill()?;
                Ok(child.wait_with_output()?)
            }),
        };
        let runtime = &self.ground.runtime;
        let outcome = match verb {
            Verb::Add => runtime.add_by(&mut handling, network, &slot.attachment),
            _ => runtime.del_by(&mut handling, network, &slot.attachment).map(|()| Value::Null),
        };
        match outcome {
            // Killed while it was ending: it has answered.
            Ok(result) => Ok(Some(result)),
            Err(_) if killed => {
                lock(&self.report).kills += 1;
                Ok(None)
            }
            Err(error) => Err(format!("{verb}: {error}").into()),
        }
    }

    /// Sees a plugin to its end.
    fn watched(&self, child: Child, config: &[u8]) -> Result<Output> {
        self.timed(child.id(), || Ok(feed(child, config).wait_with_output()?))
    }

    fn timed(&self, pid: u32, run: impl FnOnce() -> Result<Output>) -> Result<Output> {
        let start = Instant::now();
        lock(&self.running).insert(pid, start);
        let outcome = run();
        lock(&self.running).remove(&pid);
        self.longest.fetch_max(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        outcome
    }

    /// Kills plugins that have not ended for too long: that alone is the failure.
    fn break_deadlocks(&self) {
        let running = lock(&self.running);
        for (pid, _) in running.iter().filter(|(_, since)| since.elapsed() > LIMIT) {
            let about = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let (wchan, calls) = (about("wchan"), about("syscall"));
            self.fail(format!("a plugin has not ended after {LIMIT:?}: it is in {wchan}, {calls}"));
            let _ = i32::try_from(*pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
    }
}

fn feed(mut child: Child, config: &[u8]) -> Child {
    // One that was killed reads nothing.
    let _ = child.stdin.take().map(|mut input| input.write_all(config));
    child
}

/// The addresses of a result.
fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()).map(str::to_owned).collect()
}
