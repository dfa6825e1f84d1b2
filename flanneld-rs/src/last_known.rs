//! What this node knew when it last heard from its store, kept on disk: a daemon that starts while the store is away, even
//! after a reboot, still gives its pods their network and goes on healing it.

use crate::family::{Family, PerFamily};
use crate::health::Health;
use crate::lease::{Lease, LeaseTable, key};
use crate::options::Options;
use crate::reload::Configuration;
use crate::store::{Contact, Held, LEASE_TTL, Snapshot, Store};
use crate::wall_clock;
use ipam::own_file::{left_of, replace};
use ipam::regular_file::read_bounded;
use serde::ser::{Error, SerializeMap};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Name of the file in the state directory.
const FILE: &str = "last-known.json";
/// What this version writes and understands.
const VERSION: u32 = 1;
/// Longest file that is read: 5000 leases have about 1.5 MB.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Between two writes there is a pause this many times as long as the first took, within these bounds: a large cluster in
/// turmoil costs the disk little. What is lost with the last changes, the store tells again.
const PAUSE_RATIO: u32 = 50;
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// How often a lease without an end is written down again, that is how much of [`LEASE_TTL`] may be missing.
const REFRESH: Duration = Duration::from_secs(3600);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The last complete knowledge of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// boot in which it was written
    pub boot: String,
    /// the network configuration as it stood in the store; none: it came from a file
    pub config: Option<String>,
    /// this node's lease
    pub own: Held,
    /// addresses that were laid down for this node, see [`crate::store::Given::public`]
    pub public: PerFamily<IpAddr>,
    /// all leases
    pub leases: Arc<LeaseTable>,
}

/// The file, as JSON.
#[derive(Serialize, Deserialize)]
struct Document<Leases> {
    version: u32,
    store: String,
    boot: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    own: Entry,
    /// the store has taken it back
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    /// a file from before it was written has none
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    public: Vec<IpAddr>,
    /// by key
    leases: Leases,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    value: Box<RawValue>,
}

/// Where it is kept, and of which store.
#[derive(Clone, Debug)]
pub struct Place {
    /// the daemon's own directory
    pub directory: PathBuf,
    /// name of the store without what may change of it, such as its endpoints: another cluster's leases are worse than none
    pub store: String,
}

/// What there is in the daemon's own directory of what this module has written.
pub fn written(directory: &Path) -> Vec<PathBuf> {
    left_of(&directory.join(FILE))
}

impl Place {
    /// The place for what the store of the options holds. None, and logged: it is not known which cluster the store is of.
    pub async fn of(options: &Options, store: &Store) -> Option<Self> {
        let name = match (&options.store_dir, store) {
            (Some(directory), _) => format!("directory {}", directory.display()),
            // All clusters have the same annotations, and machines go from one to another.
            (None, Store::Kube(kube)) => match kube.cluster().await {
                Ok(cluster) => format!("Kubernetes {} of {cluster}", options.kubernetes.kube_annotation_prefix),
                Err(error) => {
                    tracing::warn!("{FILE} waits until the cluster is known: {error}");
                    return None;
                }
            },
            (None, _) => format!("etcd {}", options.etcd_prefix),
        };
        Some(Place { directory: options.state_dir.clone(), store: name })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What was written last. None: nothing, or nothing usable, which is logged.
    pub fn read(&self) -> Option<LastKnown> {
        let path = self.path();
        let unusable = |why: String| tracing::warn!("{} is not used: {why}", path.display());
        match read_bounded(&path, MAX_BYTES) {
            Ok(Some((text, _))) => match parse(&text) {
                Ok((store, last)) if store == self.store => Some(last),
                Ok((store, _)) => {
                    unusable(format!("it is about {store}"));
                    None
                }
                Err(why) => {
                    unusable(why);
                    None
                }
            },
            Ok(None) => None,
            Err(error) => {
                unusable(error.to_string());
                None
            }
        }
    }

    /// Replaces what was written, in one step that survives a power failure.
    ///
    /// # Errors
    /// The path and why it cannot be written.
    pub fn write(&self, last: &LastKnown) -> Result<(), String> {
        let path = self.path();
        let written = replace(&path, 0o600, |out| {
            serde_json::to_writer(&mut *out, &document(last, &self.store)?)?;
            out.write_all(b"\n")
        });
        written.map_err(|error| format!("writing {}: {error}", path.display()))
    }
}

impl LastKnown {
    /// The lease that this node may go on using without asking: it has not ended, or its pods have been there ever since.
    ///
    /// The lease of a machine that was off for longer may be somebody else's by now: also one without an end, since a cluster
    /// gives the subnets of a node that was deleted to the next one. See [`record`].
    pub fn still_held(&self, now: SystemTime) -> Option<&Held> {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot);
        let lasts = self.own.expires.is_some_and(|end| end > now);
        (same_boot || lasts).then_some(&self.own)
    }
}

/// Keeps the file up to date until it is dropped. A write that fails is a note of the node's health and is tried again.
///
/// A lease without an end is given one in the file, [`LEASE_TTL`] after the store was last heard from, to an hour.
pub async fn record(
    place: Place,
    mut config: watch::Receiver<Arc<Configuration>>,
    mut own: watch::Receiver<Option<Held>>,
    mut snapshots: watch::Receiver<Snapshot>,
    health: Health,
) {
    let boot = boot_id().unwrap_or_default();
    let mut written: Option<(LastKnown, Instant)> = None;
    loop {
        let known = {
            let (own, snapshot) = (own.borrow_and_update(), snapshots.borrow_and_update());
            let config = config.borrow_and_update().text.clone();
            let leases = snapshot.leases.clone().filter(|_| snapshot.contact == Contact::Live);
            let (boot, public) = (boot.clone(), snapshot.given.public);
            // A lease that the store no longer shows as ours is fought for, and is no news worth remembering.
            let is_ours = |(own, leases): &(Held, Arc<LeaseTable>)| {
                let listed = leases.get(&own.lease.subnets);
                listed.is_some_and(|listed| listed.announcement.is_same_node(&own.lease.announcement))
            };
            match own.clone() {
                Some(own) if own.lost => {
                    // Of the rest, what was known last.
                    let last = written.as_ref().map(|(last, _)| last.clone()).or_else(|| place.read());
                    last.filter(|last| last.own.lease.subnets == own.lease.subnets).map(|mut last| {
                        last.own.lost = true;
                        last
                    })
                }
                own => {
                    let known = own.zip(leases).filter(is_ours);
                    known.map(|(own, leases)| LastKnown { boot, config, own, public, leases })
                }
            }
        };
        let standing = written.as_ref().filter(|(last, _)| known.as_ref() == Some(last));
        let refresh = standing.and_then(|(last, at)| last.own.expires.is_none().then_some(*at + REFRESH));
        let is_due = standing.is_none() || refresh.is_some_and(|time| time <= Instant::now());
        if let Some(last) = known.filter(|_| is_due) {
            let (place, mut copy, start) = (place.clone(), last.clone(), Instant::now());
            copy.own.expires.get_or_insert_with(|| wall_clock::now() + LEASE_TTL);
            // The disk may take its time; the kernel's tables must not wait for it.
            let outcome = tokio::task::spawn_blocking(move || place.write(&copy)).await;
            let outcome = outcome.unwrap_or_else(|error| Err(error.to_string()));
            sleep((PAUSE_RATIO * start.elapsed()).clamp(PAUSE.0, PAUSE.1)).await;
            let failed = outcome.is_err();
            health.note("memory for a start without the store", outcome.err().unwrap_or_default());
            if failed {
                sleep(PAUSE.1).await;
                continue;
            }
            written = Some((last, start));
            continue;
        }
        let refresh = async {
            match refresh {
                Some(time) => sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = own.changed() => {}
            _ = snapshots.changed() => {}
            Ok(()) = config.changed() => {}
            () = refresh => {}
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// Written one after the other: all of them as text would be as much again as a large cluster takes in memory.
struct OneByOne<'a>(&'a LeaseTable);

impl Serialize for OneByOne<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(self.0.len()))?;
        for lease in self.0.iter() {
            map.serialize_entry(&key(&lease.subnets), &value(lease).map_err(S::Error::custom)?)?;
        }
        map.end()
    }
}

fn value(lease: &Lease) -> serde_json::Result<Box<RawValue>> {
    RawValue::from_string(lease.announcement.to_json())
}

fn document<'a>(last: &'a LastKnown, store: &str) -> io::Result<Document<OneByOne<'a>>> {
    let since_epoch = |end: SystemTime| end.duration_since(SystemTime::UNIX_EPOCH).ok();
    Ok(Document {
        version: VERSION,
        store: store.to_owned(),
        boot: last.boot.clone(),
        config: last.config.clone(),
        own: Entry { key: last.own.lease.key(), value: value(&last.own.lease)? },
        lost: last.own.lost,
        expires_ms: last.own.expires.and_then(since_epoch).and_then(|time| u64::try_from(time.as_millis()).ok()),
        public: last.public.iter().map(|(_, address)| *address).collect(),
        leases: OneByOne(&last.leases),
    })
}

fn parse(text: &[u8]) -> Result<(String, LastKnown), String> {
    let document: Document<BTreeMap<String, &RawValue>> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if document.version != VERSION {
        return Err(format!("it is of version {}, not {VERSION}", document.version));
    }
    let lease = |key: &str, value: &RawValue| {
        Lease::parse(key, value.get().as_bytes()).map_err(|malformed| format!("{key:?}: {malformed}"))
    };
    let expires = match document.expires_ms {
        None => None,
        Some(ms) => Some(
            SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_millis(ms))
                .ok_or_else(|| format!("expires_ms: {ms} is out of bounds"))?,
        ),
    };
    let own = Held { lost: document.lost, ..Held::new(lease(&document.own.key, &document.own.value)?, expires) };
    let leases = document.leases.iter().map(|(key, value)| lease(key, value));
    let leases = Arc::new(leases.collect::<Result<LeaseTable, _>>()?);
    let public = document.public.iter().map(|address| (Family::of(*address), *address)).collect();
    Ok((document.store, LastKnown { boot: document.boot, config: document.config, own, public, leases }))
}

/// For the fuzz targets: what is read is written and read as the same.
#[cfg(fuzzing)]
pub(crate) fn rewrite(bytes: &[u8]) {
    if let Ok((store, last)) = parse(bytes) {
        let again = document(&last, &store).map(|document| serde_json::to_vec(&document).unwrap_or_default());
        assert_eq!(again.ok().and_then(|text| parse(&text).ok()), Some((store, last)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(number: u8) -> Lease {
        let value = format!(r#"{{"PublicIP":"192.168.0.{number}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
        Lease::parse(&format!("10.5.{number}.0-24"), value.as_bytes()).unwrap()
    }

    fn last(expires: Option<SystemTime>, boot: &str) -> LastKnown {
        let leases = Arc::new([lease(1), lease(2)].into_iter().collect());
        let own = Held::new(lease(1), expires);
        let config = Some(r#"{"Network":"10.5.0.0/16"}"#.into());
        let public = PerFamily { v4: "203.0.113.9".parse().ok(), v6: None };
        LastKnown { boot: boot.into(), config, own, public, leases }
    }

    fn place(directory: &Path) -> Place {
        Place { directory: directory.join("state"), store: "etcd /coreos.com/network".into() }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        assert_eq!(place.read(), None);
        for expires in [None, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567))] {
            place.write(&last(expires, "this")).unwrap();
            assert_eq!(place.read(), Some(last(expires, "this")));
        }
        assert_eq!(Place { store: "etcd /another".into(), ..place.clone() }.read(), None);
        // One that was written before addresses were.
        let text = fs::read_to_string(place.path()).unwrap();
        let older = text.replace(r#""public":["203.0.113.9"],"#, "");
        assert_ne!(older, text);
        fs::write(place.path(), older).unwrap();
        assert_eq!(place.read().unwrap().public, PerFamily::default());
        // A process that was killed while it wrote.
        let draft = place.directory.join(".last-known.json.4711");
        fs::write(&draft, "half").unwrap();
        fs::write(place.directory.join(".last-known.json.old"), "somebody's").unwrap();
        assert_eq!(super::written(&place.directory), [draft, place.path()]);
    }

    #[test]
    fn what_is_damaged_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        place.write(&last(None, "this")).unwrap();
        let text = fs::read_to_string(place.path()).unwrap();
        let damaged = [
            text[..text.len() / 2].to_owned(),
            String::new(),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("10.5.1.0-24", "10.5.1.0-33"),
            text.replace("192.168.0.2", "nobody"),
        ];
        for text in damaged {
            fs::write(place.path(), &text).unwrap();
            assert_eq!(place.read(), None, "{text}");
        }
    }

    #[test]
    fn a_lease_is_used_while_it_lasts_or_its_pods_do() {
        let now = SystemTime::now();
        let (past, future) = (Some(now - Duration::from_secs(1)), Some(now + Duration::from_secs(60)));
        let boot = boot_id().unwrap();
        let held = |expires, boot| last(expires, boot).still_held(now).is_some();
        assert!(held(past, &boot) && held(future, &boot) && held(None, &boot));
        assert!(held(future, "another"));
        assert!(!held(past, "another") && !held(None, "another"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_has_taken_back_is_remembered_as_lost() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let before = last(None, &boot_id().unwrap());
        place.write(&before).unwrap();
        let text = before.config.clone();
        let config = crate::network_config::NetworkConfig::parse(text.as_ref().unwrap()).unwrap();
        let (_configs, config) = watch::channel(Arc::new(Configuration { config, text }));
        let (_own, own) = watch::channel(Some(Held { lost: true, ..before.own.clone() }));
        // The list has it no more.
        let live = Snapshot { leases: Some(Arc::default()), contact: Contact::Live, ..Snapshot::default() };
        let (_show, snapshots) = watch::channel(live);
        let task = tokio::spawn(record(place.clone(), config, own, snapshots, Health::new()));
        while !place.read().is_some_and(|last| last.own.lost) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let after = place.read().unwrap();
        assert_eq!((&after.own.lease, &after.leases), (&before.own.lease, &before.leases));
        assert!(after.still_held(SystemTime::now()).is_some_and(|held| held.lost));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_an_end_is_remembered_for_a_day_since_the_store_was_heard() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let LastKnown { own, leases, config: text, .. } = last(None, "this");
        let config = crate::network_config::NetworkConfig::parse(text.as_ref().unwrap()).unwrap();
        let (_configs, config) = watch::channel(Arc::new(Configuration { config, text }));
        let (_own, own) = watch::channel(Some(own));
        let live = Snapshot { leases: Some(leases), contact: Contact::Live, ..Snapshot::default() };
        let (show, snapshots) = watch::channel(live.clone());
        let task = tokio::spawn(record(place.clone(), config, own, snapshots, Health::new()));
        // The disk takes time that is not of this clock.
        let written = async || loop {
            if let Some(last) = place.read() {
                return last;
            }
            std::thread::sleep(Duration::from_millis(1));
            sleep(Duration::from_secs(60)).await;
        };
        let started = Instant::now();
        let left = |last: &LastKnown| last.own.expires.unwrap().duration_since(SystemTime::now()).unwrap();
        let first = written().await;
        assert!(left(&first) <= LEASE_TTL && left(&first) > LEASE_TTL - Duration::from_secs(600));
        assert!(first.still_held(SystemTime::now()).is_some());
        // Written again from time to time, but only while the store is heard, and says that it is ours.
        fs::remove_file(place.path()).unwrap();
        written().await;
        assert!(started.elapsed() >= REFRESH && started.elapsed() < 3 * REFRESH, "{:?}", started.elapsed());
        let down = Contact::Down { since: SystemTime::now(), why: String::new() };
        show.send_replace(Snapshot { contact: down, ..live.clone() });
        sleep(PAUSE.1 * 3).await;
        fs::remove_file(place.path()).unwrap();
        sleep(10 * REFRESH).await;
        let another = Lease { subnets: lease(1).subnets, ..lease(2) };
        for leases in [vec![lease(2)], vec![another]] {
            let leases = Some(Arc::new(leases.into_iter().collect()));
            show.send_replace(Snapshot { leases, ..live.clone() });
            sleep(10 * REFRESH).await;
        }
        assert_eq!(place.read(), None);
        show.send_replace(live);
        written().await;
        task.abort();
    }
}
