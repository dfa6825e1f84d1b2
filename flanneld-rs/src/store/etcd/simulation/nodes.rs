//! Nodes at work for simulated weeks: whatever happens to them, in the end each has a subnet, and none has another's.
//!
//! `SIMULATION_SEEDS=1000` looks at more than the sample, `SIMULATION_FIRST_SEED=N` begins with that one.

use super::{Condition as Link, Wire, World};
use crate::family::{Family, PerFamily};
use crate::health::{Condition, Health};
use crate::keeper::Keeper;
use crate::lease::{Announcement, Endpoint, Subnets};
use crate::network_config::NetworkConfig;
use crate::reload::Configuration;
use crate::store::etcd::{EtcdOptions, EtcdStore};
use crate::store::{Contact, Held, LEASE_TTL, Snapshot, Store, StoreError};
use crate::wall_clock::simulated::{CLOCK, Clock};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than the longest pause between two attempts, and whatever is under way.
const GRACE: Duration = Duration::from_secs(300);
/// Ten subnets for six nodes: a dead one's is soon another's.
const CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.10.0","Backend":{"Type":"host-gw"}}"#;

/// A machine: what outlives its daemon.
struct Node {
    wire: Wire,
    clock: Clock,
    announcement: Announcement,
    /// the last lease, as on its disk
    last: Option<Held>,
    daemon: Option<Daemon>,
}

struct Daemon {
    leases: watch::Receiver<Option<Held>>,
    health: Health,
    tasks: [JoinHandle<Option<StoreError>>; 2],
    _announced: watch::Sender<Announcement>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    fn new(world: &Arc<Mutex<World>>, number: u8) -> Self {
        let wire = Wire { world: world.clone(), condition: Arc::default(), news: Arc::default() };
        wire.world().watchers.push(wire.news.clone());
        // Clocks that were never set right.
        let clock = Clock::new(1_000_000_000 + 50_000 * u64::from(number));
        let endpoint = Endpoint { public_ip: [192, 168, 0, number].into(), data: None };
        let mut endpoints = PerFamily::default();
        endpoints.set(Family::V4, endpoint);
        let announcement = Announcement { backend_type: "host-gw".into(), endpoints };
        Node { wire, clock, announcement, last: None, daemon: None }
    }

    fn start(&mut self) {
        let options = EtcdOptions {
            endpoints: vec!["http://simulated".into()],
            prefix: "/simulated".into(),
            cafile: None,
            certfile: None,
            keyfile: None,
            user: None,
            ttl: LEASE_TTL,
        };
        let store = EtcdStore { simulated: Some(self.wire.clone()), ..EtcdStore::new(options).unwrap() };
        let health = Health::new();
        for condition in [Condition::Peers, Condition::Overlay, Condition::Firewall, Condition::Files] {
            health.set(condition, Ok(()));
        }
        let (announced, announcement) = watch::channel(self.announcement.clone());
        let (publish, leases) = watch::channel(None);
        let (shown, snapshots) = watch::channel(Snapshot::default());
        let config = Configuration { config: NetworkConfig::parse(CONFIG).unwrap(), text: None };
        let keeper = Keeper {
            store: Arc::new(Store::Etcd(store)),
            config: watch::Sender::new(Arc::new(config)).subscribe(),
            node: String::new(),
            previous: self.last.as_ref().map(|last| last.lease.subnets).unwrap_or_default(),
            remembered: self.last.clone(),
            margin: HOUR,
            announcement,
            snapshots,
            health: health.clone(),
        };
        let keeper = tokio::spawn(CLOCK.scope(self.clock.clone(), async { Some(keeper.run(publish).await) }));
        let watch = tokio::spawn(show(self.wire.clone(), shown));
        self.daemon = Some(Daemon { leases, health, tasks: [keeper, watch], _announced: announced });
    }

    fn stop(&mut self) {
        self.last = self.held().or(self.last.take());
        self.daemon = None;
    }

    fn held(&self) -> Option<Held> {
        self.daemon.as_ref()?.leases.borrow().clone()
    }

    fn set(&self, link: Link) {
        self.wire.condition.send_replace(link);
    }
}

/// Shows a node what the server has, as its watch does.
async fn show(wire: Wire, shown: watch::Sender<Snapshot>) -> Option<StoreError> {
    let mut links = wire.condition.subscribe();
    loop {
        let (delay, is_cut) = (wire.travel().unwrap_or_default(), links.borrow_and_update().cut);
        sleep(delay).await;
        if !is_cut {
            let leases = Some(Arc::new(wire.world().leases()));
            shown.send_replace(Snapshot { leases, contact: Contact::Live, ..Snapshot::default() });
        }
        tokio::select! {
            biased;
            _ = links.changed() => {}
            () = wire.news.notified(), if !is_cut => {}
        }
    }
}

struct Cluster {
    seed: u64,
    world: Arc<Mutex<World>>,
    nodes: Vec<Node>,
}

impl Cluster {
    fn new(seed: u64, nodes: u8) -> Self {
        let world = Arc::new(Mutex::new(World::new(seed)));
        let mut nodes: Vec<_> = (1..=nodes).map(|number| Node::new(&world, number)).collect();
        nodes.iter_mut().for_each(Node::start);
        // What ends is seen to end.
        let clock = Arc::downgrade(&world);
        tokio::spawn(async move {
            while let Some(world) = clock.upgrade() {
                world.lock().unwrap().apply(|_| ());
                drop(world);
                sleep(GRACE / 2).await;
            }
        });
        Cluster { seed, world, nodes }
    }

    fn chance(&self, below: usize) -> usize {
        self.nodes.first().map_or(0, |node| node.wire.random(below))
    }

    /// Something happens to one node, or to all of them.
    fn strike(&mut self) {
        let (kind, number) = (self.chance(9), self.chance(self.nodes.len()));
        let seconds = i64::try_from(self.chance(240_000)).unwrap() - 120_000;
        let entry = self.chance(10);
        if kind == 0 {
            self.nodes.iter().for_each(|node| node.set(Link { cut: true, noisy: false }));
        }
        if kind == 1 {
            // An administrator's mistake.
            let mut world = self.world.lock().unwrap();
            let entry = world.entries.values().nth(entry).map(|entry| (entry.subnets, entry.revision));
            entry.into_iter().for_each(|(subnets, revision)| {
                world.apply(|world| world.delete(&subnets, revision));
            });
        }
        let node = &mut self.nodes[number];
        match kind {
            2 => node.set(Link { cut: true, noisy: false }),
            3 | 4 => node.set(Link { cut: false, noisy: true }),
            5 => node.set(Link::default()),
            6 => node.stop(),
            7 => {
                node.stop();
                node.start();
            }
            8 => node.clock.jump(seconds),
            _ => {}
        }
    }

    /// All faults end; after a grace each node has what the server says it has, and no two have the same.
    async fn calm(&mut self) -> BTreeSet<Subnets> {
        for node in &mut self.nodes {
            node.set(Link::default());
            if node.daemon.is_none() {
                node.start();
            }
        }
        sleep(GRACE).await;
        let mut all = BTreeSet::new();
        let world = self.world.lock().unwrap();
        for node in &self.nodes {
            let (seed, who) = (self.seed, node.announcement.public_ip());
            let health = node.daemon.as_ref().unwrap().health.ready();
            let held = node.held().unwrap_or_else(|| panic!("seed {seed}: {who:?} has no lease: {health:?}"));
            assert_eq!(health, Ok(()), "seed {seed}: {who:?}");
            assert!(all.insert(held.lease.subnets), "seed {seed}: {} has two owners", held.lease);
            let entry = world.entries.get(&held.lease.subnets);
            let entry = entry.unwrap_or_else(|| panic!("seed {seed}: {} is not in the store", held.lease));
            assert_eq!(entry.announcement, held.lease.announcement, "seed {seed}");
        }
        all
    }

    /// When each key was created: none of them has been away if this stays the same.
    fn births(&self, of: &BTreeSet<Subnets>) -> Vec<i64> {
        let world = self.world.lock().unwrap();
        of.iter().filter_map(|subnets| world.entries.get(subnets)).map(|entry| entry.created).collect()
    }
}

fn simulate(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn after_any_faults_every_node_has_a_subnet_of_its_own() {
    let first = from_environment("SIMULATION_FIRST_SEED", 1);
    for seed in first..first + from_environment("SIMULATION_SEEDS", 5) {
        println!("seed {seed}");
        simulate(async {
            let mut cluster = Cluster::new(seed, 6);
            for _ in 0..4 {
                for _ in 0..cluster.chance(12) {
                    cluster.strike();
                    let unit = [1, 60, 3600][cluster.chance(3)];
                    sleep(Duration::from_secs(unit * cluster.chance(12) as u64)).await;
                }
                let subnets = cluster.calm().await;
                // More than a quiet day: leases are renewed in time, whatever the clocks show.
                let births = cluster.births(&subnets);
                sleep(30 * HOUR).await;
                assert_eq!(cluster.calm().await, subnets, "seed {seed}");
                assert_eq!(cluster.births(&subnets), births, "seed {seed}: a lease ended though nothing happened");
            }
            // The same each time, or the seed is worth nothing.
            println!("  ended at revision {}", cluster.world.lock().unwrap().revision);
        });
    }
}

#[test]
fn after_two_days_without_store_each_node_has_its_subnet_again() {
    simulate(async {
        let mut cluster = Cluster::new(1, 10);
        let before: Vec<_> = {
            cluster.calm().await;
            cluster.nodes.iter().map(|node| node.held().unwrap().lease).collect()
        };
        cluster.nodes.iter().for_each(|node| node.set(Link { cut: true, noisy: false }));
        sleep(24 * HOUR).await;
        // One daemon is restarted meanwhile, and serves from memory.
        cluster.nodes[3].stop();
        cluster.nodes[3].start();
        sleep(24 * HOUR).await;
        assert!(cluster.world.lock().unwrap().entries.is_empty(), "all leases have ended");
        let held =
            |cluster: &Cluster| -> Vec<_> { cluster.nodes.iter().map(|node| node.held().unwrap().lease).collect() };
        assert_eq!(held(&cluster), before, "the data plane stays as it is");
        cluster.calm().await;
        assert_eq!(held(&cluster), before, "there is no spare subnet: each has taken its own");
    });
}
