//! Following the lease directory. A notification only wakes: what counts is the list that is read after it.

use super::directory::{Sight, Sights, Stamp};
use super::record::Entry;
use super::{FileStore, aside};
use crate::store::StoreError;
use crate::store::snapshot::{Listing, Publisher};
use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// A look without an event, in case the file system sends none.
const RELIST: Duration = Duration::from_secs(10);
/// But all files are looked at this often only while no name in the directory has changed, which daemons always do: somebody
/// may have written into a file in place.
const WHOLE: Duration = Duration::from_secs(60);
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
            Err(_) => Look::Due,
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
    /// all, if there may be something that nobody has told of
    Due,
    At(Vec<String>),
}

/// The lease files as they were last seen: of thousands, only those that have changed are read.
#[derive(Default)]
struct Files {
    listing: Listing,
    seen: Sights,
    /// the directory before all of it was looked at, if it had been in peace, and when that was
    whole: Option<(Option<Stamp>, Instant)>,
}

impl Files {
    async fn look(&mut self, store: &FileStore, look: Look) -> Result<(), StoreError> {
        let directory = store.directory.clone();
        let (seen, whole) = (std::mem::take(&mut self.seen), self.whole);
        let (seen, whole, found) = aside(move || {
            if let Look::At(keys) = look {
                let (mut entries, mut gone) = (Vec::new(), Vec::new());
                for key in keys {
                    match directory.read(&key)? {
                        Some(entry) => entries.push(entry),
                        None => gone.push(key),
                    }
                }
                return Ok((seen, whole, (entries, gone)));
            }
            let stamp = directory.stamp().filter(|stamp| stamp.is_settled(SystemTime::now()));
            let now = Instant::now();
            let is_same = |(before, then): (Option<Stamp>, Instant)| before == stamp && now - then < WHOLE;
            if matches!(look, Look::Due) && stamp.is_some() && whole.is_some_and(is_same) {
                return Ok((seen, whole, Default::default()));
            }
            let found = directory.changes(&seen)?;
            Ok((seen, Some((stamp, now)), found))
        })
        .await?;
        (self.seen, self.whole) = (seen, whole);
        let (entries, gone) = found;
        for key in gone {
            self.seen.remove(key.as_str());
            self.listing.remove(&key);
        }
        for entry in entries {
            self.take(entry, store.ttl);
        }
        Ok(())
    }

    fn take(&mut self, entry: Entry, ttl: Duration) {
        let end = if entry.record.is_ok() { entry.claim(ttl).and_then(|(_, _, end)| end) } else { None };
        self.seen.insert(entry.key.as_str().into(), Sight { stamp: entry.stamp, end });
        self.listing.put(&entry.key, entry.record.map(|record| record.lease));
    }

    /// Takes out the leases whose time is over, and returns when the next one's is.
    fn end_leases(&mut self, now: SystemTime) -> Option<SystemTime> {
        let mut next: Option<SystemTime> = None;
        for (key, sight) in &mut self.seen {
            let Some(end) = sight.end else { continue };
            if end <= now {
                tracing::debug!("lease {key} has expired");
                sight.end = None;
                self.listing.remove(key);
            } else if next.is_none_or(|next| end < next) {
                next = Some(end);
            }
        }
        next
    }
}

fn notifications(path: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    // CREATE and CLOSE_WRITE are for files that somebody writes in place; ours are renamed into place.
    let changes = WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::CLOSE_WRITE;
    inotify.watches().add(path, changes | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR)?;
    inotify.into_event_stream([0; 4096])
}
