//! Following the lease directory. A notification only wakes: what counts is the list that is read after it.

use super::directory::Stamp;
use super::record::Entry;
use super::{FileStore, aside};
use crate::store::StoreError;
use crate::store::snapshot::{Listing, Publisher};
use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A list without an event, in case a notification was lost or the file system sends none.
const RELIST: Duration = Duration::from_secs(10);
/// Between attempts while the directory is unusable.
const RETRY: Duration = Duration::from_millis(500);

/// Publishes the leases until it is dropped.
pub(super) async fn follow(store: FileStore, publisher: Publisher) {
    loop {
        let why = follow_directory(&store, &publisher).await;
        publisher.down(why);
        tokio::time::sleep(RETRY).await;
    }
}

/// Publishes the leases until the directory goes away. Returns why.
async fn follow_directory(store: &FileStore, publisher: &Publisher) -> String {
    // Notifications first, then the list: a change between the two is seen twice rather than never.
    let path = store.directory.subnets();
    let mut notifications = match notifications(&path) {
        Ok(notifications) => notifications,
        Err(error) => return format!("watching {}: {error}", path.display()),
    };
    let mut files = Files::default();
    let mut look = Look::All;
    loop {
        if let Err(error) = files.look(store, look).await {
            return error.to_string();
        }
        let next_end = files.end_leases(SystemTime::now());
        publisher.live(&files.listing);
        let wait = next_end.map_or(RELIST, |end| end.duration_since(SystemTime::now()).unwrap_or_default().min(RELIST));
        look = match tokio::time::timeout(wait, notifications.next()).await {
            Err(_) => Look::All,
            Ok(Some(Ok(event))) => {
                let mut masks = event.mask;
                let mut names = BTreeSet::from_iter(event.name);
                while let Some(Some(Ok(more))) = notifications.next().now_or_never() {
                    masks |= more.mask;
                    names.extend(more.name);
                }
                let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
                if masks.intersects(gone) {
                    return format!("{} was removed or replaced", path.display());
                }
                let text = |name: OsString| name.into_string().ok();
                match names.into_iter().map(text).collect() {
                    Some(names) if !masks.contains(EventMask::Q_OVERFLOW) => Look::At(names),
                    _ => Look::All,
                }
            }
            Ok(Some(Err(error))) => return format!("watching {}: {error}", path.display()),
            Ok(None) => return format!("watching {}: no more events", path.display()),
        };
    }
}

/// What is to be looked at.
enum Look {
    All,
    At(Vec<String>),
}

/// The lease files as they were last seen: of thousands, only those that have changed are read.
#[derive(Default)]
struct Files {
    listing: Listing,
    stamps: BTreeMap<String, Stamp>,
    /// ends of the leases in the listing
    ends: BTreeMap<String, SystemTime>,
}

impl Files {
    async fn look(&mut self, store: &FileStore, look: Look) -> Result<(), StoreError> {
        let directory = store.directory.clone();
        let stamps = std::mem::take(&mut self.stamps);
        let (stamps, found) = aside(move || {
            let found = match look {
                Look::All => directory.changes(&stamps)?,
                Look::At(keys) => {
                    let (mut entries, mut gone) = (Vec::new(), Vec::new());
                    for key in keys {
                        match directory.read(&key)? {
                            Some(entry) => entries.push(entry),
                            None => gone.push(key),
                        }
                    }
                    (entries, gone)
                }
            };
            Ok((stamps, found))
        })
        .await?;
        self.stamps = stamps;
        let (entries, gone) = found;
        for key in gone {
            self.forget(&key);
        }
        for entry in entries {
            self.take(entry, store.ttl);
        }
        Ok(())
    }

    fn forget(&mut self, key: &str) {
        self.stamps.remove(key);
        self.ends.remove(key);
        self.listing.remove(key);
    }

    fn take(&mut self, entry: Entry, ttl: Duration) {
        self.forget(&entry.key);
        self.stamps.extend(entry.stamp.map(|stamp| (entry.key.clone(), stamp)));
        if entry.record.is_ok() {
            let end = entry.claim(ttl).and_then(|(_, _, end)| end);
            self.ends.extend(end.map(|end| (entry.key.clone(), end)));
        }
        self.listing.put(&entry.key, entry.record.map(|record| record.lease));
    }

    /// Takes out the leases whose time is over, and returns when the next one's is.
    fn end_leases(&mut self, now: SystemTime) -> Option<SystemTime> {
        let over: Vec<String> = self.ends.iter().filter(|(_, end)| **end <= now).map(|(key, _)| key.clone()).collect();
        for key in over {
            tracing::debug!("lease {key} has expired");
            self.ends.remove(&key);
            self.listing.remove(&key);
        }
        self.ends.values().min().copied()
    }
}

fn notifications(path: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    // CREATE and CLOSE_WRITE are for files that somebody writes in place; ours are renamed into place.
    let changes = WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::CLOSE_WRITE;
    inotify.watches().add(path, changes | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR)?;
    inotify.into_event_stream([0; 4096])
}
