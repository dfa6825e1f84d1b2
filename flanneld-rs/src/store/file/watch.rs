//! Following the lease directory. A notification only wakes: what counts is the list that is read after it.

use super::{FileStore, aside};
use crate::lease::Malformed;
use crate::store::StoreError;
use crate::store::snapshot::{Listing, Publisher};
use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchMask};
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
    loop {
        let (listing, next_end) = match list(store).await {
            Ok(listing) => listing,
            Err(error) => return error.to_string(),
        };
        publisher.live(&listing);
        let wait = next_end.map_or(RELIST, |end| end.duration_since(SystemTime::now()).unwrap_or_default().min(RELIST));
        match tokio::time::timeout(wait, notifications.next()).await {
            Err(_) => {}
            Ok(Some(Ok(event))) => {
                let mut masks = event.mask;
                while let Some(Some(Ok(more))) = notifications.next().now_or_never() {
                    masks |= more.mask;
                }
                let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
                if masks.intersects(gone) {
                    return format!("{} was removed or replaced", path.display());
                }
            }
            Ok(Some(Err(error))) => return format!("watching {}: {error}", path.display()),
            Ok(None) => return format!("watching {}: no more events", path.display()),
        }
    }
}

fn notifications(path: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    // CREATE and CLOSE_WRITE are for files that somebody writes in place; ours are renamed into place.
    let changes = WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::CLOSE_WRITE;
    inotify.watches().add(path, changes | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR)?;
    inotify.into_event_stream([0; 4096])
}

/// The leases that have not expired, and the next end of one.
async fn list(store: &FileStore) -> Result<(Listing, Option<SystemTime>), StoreError> {
    let (directory, ttl) = (store.directory.clone(), store.ttl);
    let entries = aside(move || directory.list()).await?;
    let now = SystemTime::now();
    let (mut listing, mut next_end) = (Listing::default(), None);
    for entry in entries {
        let lease = match entry.record {
            Ok(ref record) if entry.has_expired(ttl, now) => {
                tracing::debug!("lease {} has expired", record.lease);
                continue;
            }
            Ok(record) => {
                next_end = [next_end, record.expires].into_iter().flatten().min();
                Ok(record.lease)
            }
            Err(Malformed(why)) => Err(Malformed(why)),
        };
        listing.put(&entry.key, lease);
    }
    Ok((listing, next_end))
}
