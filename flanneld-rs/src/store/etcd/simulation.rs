//! An etcd in memory, with the semantics that the store relies on, and wires to it that lose, delay and repeat.

mod nodes;

use super::connection::REQUEST_PATIENCE;
use super::keys::{Entry, Expect, Put};
use crate::lease::{Lease, LeaseTable, Subnets};
use crate::store::StoreError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

/// The server and its chance.
struct World {
    chance: StdRng,
    revision: i64,
    entries: BTreeMap<Subnets, Entry>,
    /// when each etcd lease ends
    ends: BTreeMap<i64, Instant>,
    granted: i64,
    /// told of each change, in this order: a watch channel wakes its receivers in none that could be repeated
    watchers: Vec<Arc<Notify>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let chance = StdRng::seed_from_u64(seed);
        let (entries, ends) = (BTreeMap::new(), BTreeMap::new());
        World { chance, revision: 1, entries, ends, granted: 0, watchers: Vec::new() }
    }

    /// Carries out a request at this moment.
    fn apply<T>(&mut self, request: impl Fn(&mut Self) -> T) -> T {
        let (now, before) = (Instant::now(), self.revision);
        let ended: Vec<i64> = self.ends.iter().filter(|(_, end)| **end <= now).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|id| self.end(id));
        let answer = request(self);
        if self.revision != before {
            self.watchers.iter().for_each(|watcher| watcher.notify_one());
        }
        answer
    }

    /// An etcd lease ends, and with it the keys that hang on it.
    fn end(&mut self, id: i64) {
        self.ends.remove(&id);
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.lease != id);
        self.revision += i64::from(self.entries.len() != before);
    }

    fn put(&mut self, lease: &Lease, id: i64, expect: Expect) -> Result<Put, StoreError> {
        let present = self.entries.get(&lease.subnets);
        let is_expected = match expect {
            Expect::Absent => present.is_none(),
            Expect::Revision(revision) => present.is_some_and(|entry| entry.revision == revision),
        };
        if !is_expected {
            return Ok(match present {
                // As over a real connection.
                Some(entry) if entry.lease == id && entry.announcement == lease.announcement => {
                    Put::Done(entry.revision)
                }
                present => Put::Refused(present.cloned()),
            });
        }
        if id != 0 && !self.ends.contains_key(&id) {
            return Err(StoreError::Unavailable("requested lease not found".into()));
        }
        self.revision += 1;
        let created = present.map_or(self.revision, |entry| entry.created);
        let (subnets, announcement) = (lease.subnets, lease.announcement.clone());
        self.entries.insert(subnets, Entry { subnets, announcement, revision: self.revision, created, lease: id });
        Ok(Put::Done(self.revision))
    }

    fn delete(&mut self, subnets: &Subnets, revision: i64) -> bool {
        let is_expected = self.entries.get(subnets).is_some_and(|entry| entry.revision == revision);
        if is_expected {
            self.entries.remove(subnets);
            self.revision += 1;
        }
        is_expected
    }

    fn grant(&mut self, ttl: Duration) -> (i64, Duration) {
        self.granted += 1;
        self.ends.insert(self.granted, Instant::now() + ttl);
        (self.granted, ttl)
    }

    fn leases(&self) -> LeaseTable {
        let entries = self.entries.values();
        entries.map(|entry| Lease { subnets: entry.subnets, announcement: entry.announcement.clone() }).collect()
    }
}

/// How a wire is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    /// nothing passes
    cut: bool,
    /// some is lost, late or comes twice
    noisy: bool,
}

/// One node's connection.
#[derive(Clone)]
pub(super) struct Wire {
    world: Arc<Mutex<World>>,
    condition: Arc<watch::Sender<Condition>>,
    news: Arc<Notify>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "wire {:?}", *self.condition.borrow())
    }
}

impl Wire {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(super) fn random(&self, bound: usize) -> usize {
        self.world().chance.random_range(0..bound.max(1))
    }

    /// How long the next message is under way; none: for ever.
    fn travel(&self) -> Option<Duration> {
        let condition = *self.condition.borrow();
        let chance = &mut self.world().chance;
        let longest = if condition.noisy { 8_000 } else { 40 };
        let delay = Duration::from_millis(chance.random_range(1..longest));
        let is_lost = condition.cut || (condition.noisy && chance.random_ratio(1, 8));
        (!is_lost).then_some(delay)
    }

    /// Sends a request, which may arrive when nobody waits for the answer any more.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl Fn(&mut World) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let wire = self.clone();
        tokio::spawn(async move {
            let copies = 1 + usize::from(wire.condition.borrow().noisy && wire.random(8) == 0);
            let mut last = None;
            for _ in 0..copies {
                let Some(delay) = wire.travel() else { return };
                sleep(delay).await;
                last = Some(wire.world().apply(&request));
            }
            if let (Some(last), Some(delay)) = (last, wire.travel()) {
                sleep(delay).await;
                answer.send(last).ok();
            } else {
                sleep(2 * REQUEST_PATIENCE).await;
            }
        });
        let answered = timeout(REQUEST_PATIENCE, answered).await;
        answered.ok().and_then(Result::ok).ok_or_else(|| StoreError::Unavailable("no answer".into()))
    }

    pub(super) async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        self.ask(|world| world.entries.values().cloned().collect()).await
    }

    pub(super) async fn get(&self, subnets: Subnets) -> Result<Option<Entry>, StoreError> {
        self.ask(move |world| world.entries.get(&subnets).cloned()).await
    }

    pub(super) async fn put(&self, lease: Lease, id: i64, expect: Expect) -> Result<Put, StoreError> {
        self.ask(move |world| world.put(&lease, id, expect)).await?
    }

    pub(super) async fn delete(&self, subnets: Subnets, revision: i64) -> Result<bool, StoreError> {
        self.ask(move |world| world.delete(&subnets, revision)).await
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), StoreError> {
        self.ask(move |world| world.grant(ttl)).await
    }

    pub(super) async fn revoke(&self, id: i64) {
        self.ask(move |world| world.end(id)).await.ok();
    }
}
