//! Following the leases: a list, then every change since; and all over again when the connection or the history is lost.

use super::connection::{REQUEST_PATIENCE, sort};
use super::{EtcdStore, keys};
use crate::lease::Lease;
use crate::store::StoreError;
use crate::store::snapshot::{Listing, Publisher};
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use futures::{FutureExt, StreamExt};
use std::time::Duration;
use tokio::sync::watch;

/// Time before the first and between later attempts to reach etcd again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a watch ended.
enum End {
    /// the changes to come will not be heard of, since etcd has compacted them or another connection is in use: a new list
    /// will show what they led to
    Gap(&'static str),
    /// no contact
    Lost(String),
}

/// Publishes the leases until it is dropped.
pub(super) async fn follow(store: EtcdStore, publisher: Publisher) {
    let mut retry = RETRY.0;
    loop {
        let mut listed = false;
        let end = follow_once(&store, &publisher, &mut listed).await;
        if listed {
            retry = RETRY.0;
        }
        match end {
            End::Gap(why) => tracing::debug!("{why} meanwhile: listing the leases again"),
            End::Lost(why) => publisher.down(why),
        }
        pause(&mut retry).await;
    }
}

/// Wakes `wake` whenever the network configuration may have changed, until it is dropped: at each change of its key, and each
/// time that changes may have gone unnoticed.
pub(super) async fn follow_config(store: &EtcdStore, wake: watch::Sender<()>) {
    let mut retry = RETRY.0;
    loop {
        if let Ok((mut stream, turn)) = open(store, &store.config_key(), WatchOptions::new()).await {
            retry = RETRY.0;
            wake.send_replace(());
            let mut ended = std::pin::pin!(store.connection.ended(turn));
            loop {
                let message = tokio::select! {
                    message = stream.message() => message,
                    () = &mut ended => break,
                };
                let Ok(Some(message)) = message else { break };
                wake.send_replace(());
                if message.canceled() {
                    break;
                }
            }
        }
        pause(&mut retry).await;
    }
}

/// A thousand daemons that lost one server do not come back in step.
async fn pause(retry: &mut Duration) {
    tokio::time::sleep(retry.mul_f64(rand::random_range(0.5..1.0))).await;
    *retry = (*retry * 2).min(RETRY.1);
}

async fn follow_once(store: &EtcdStore, publisher: &Publisher, listed: &mut bool) -> End {
    let prefix = store.lease_prefix();
    let list = match store.list_raw().await {
        Ok(list) => list,
        Err(error) => return End::Lost(error.to_string()),
    };
    let mut listing = Listing::default();
    for kv in list.kvs() {
        note(&mut listing, kv.key(), &prefix, Some(kv.value()));
    }
    let next = list.header().map_or(0, |header| header.revision()) + 1;
    let (mut stream, turn) =
        match open(store, &prefix, WatchOptions::new().with_prefix().with_start_revision(next)).await {
            Ok(opened) => opened,
            Err(error) => return End::Lost(error.to_string()),
        };
    *listed = true;
    // Only now: whoever sees this list may rely on hearing of what comes after it.
    publisher.live(&listing);
    let mut ended = std::pin::pin!(store.connection.ended(turn));
    let end = loop {
        let message = tokio::select! {
            message = stream.message() => message,
            // Whoever gave it up may have noticed before us that nobody is there any more.
            () = &mut ended => break End::Gap("another connection was made"),
        };
        let first = match message {
            Ok(Some(message)) => message,
            Ok(None) => break End::Lost("etcd has ended the watch".into()),
            Err(error) => break lost(store, error),
        };
        // Changes that came together are published together.
        let mut messages = vec![first];
        let mut failure = None;
        while let Some(Some(more)) = stream.next().now_or_never() {
            match more {
                Ok(message) => messages.push(message),
                Err(error) => failure = Some(lost(store, error)),
            }
        }
        for message in &messages {
            if let Some(end) = take(&mut listing, &prefix, message) {
                failure.get_or_insert(end);
            }
        }
        publisher.live(&listing);
        if let Some(end) = failure {
            break end;
        }
    };
    if let End::Lost(_) = end {
        store.connection.give_up(turn);
    }
    end
}

fn lost(store: &EtcdStore, error: etcd_client::Error) -> End {
    End::Lost(sort(error).error(format!("{}: watching the leases", store.connection.name())).to_string())
}

async fn open(store: &EtcdStore, key: &str, options: WatchOptions) -> Result<(WatchStream, usize), StoreError> {
    let (client, turn) = store.connection.client().await?;
    let mut watcher = client.watch_client().max_decoding_message_size(keys::MAX_ANSWER_BYTES);
    let doing = || format!("{}: watching {key}", store.connection.name());
    match tokio::time::timeout(REQUEST_PATIENCE, watcher.watch(key, Some(options))).await {
        Ok(Ok(stream)) => Ok((stream, turn)),
        Ok(Err(error)) => {
            store.connection.give_up(turn);
            Err(sort(error).error(doing()))
        }
        Err(_) => {
            store.connection.give_up(turn);
            Err(StoreError::Unavailable(format!("{}: no answer", doing())))
        }
    }
}

/// Takes a message's changes in. Some: it was the last one.
fn take(listing: &mut Listing, prefix: &str, message: &WatchResponse) -> Option<End> {
    for event in message.events() {
        let Some(kv) = event.kv() else { continue };
        match event.event_type() {
            EventType::Put => note(listing, kv.key(), prefix, Some(kv.value())),
            EventType::Delete => note(listing, kv.key(), prefix, None),
        }
    }
    if message.compact_revision() != 0 {
        Some(End::Gap("etcd was compacted"))
    } else if message.canceled() {
        Some(End::Lost(format!("etcd has ended the watch: {}", message.cancel_reason())))
    } else {
        None
    }
}

/// Takes one key's value in; none: it was deleted.
fn note(listing: &mut Listing, key: &[u8], prefix: &str, value: Option<&[u8]>) {
    let key = String::from_utf8_lossy(key);
    let name = key.strip_prefix(prefix).unwrap_or(&key);
    match value {
        Some(value) => listing.put(name, Lease::parse(name, value)),
        None => listing.remove(name),
    }
}
