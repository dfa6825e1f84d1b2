//! Following the Node objects: a list, streamed where the server can, then every change since; on from the last change after
//! an interruption, and all over again when the server no longer knows what came after that.

use super::KubeStore;
use super::connection::{Answer, Failure, PATIENCE, parse};
use super::node::Node;
use super::roster::Roster;
use crate::store::snapshot::Publisher;
use futures::FutureExt;
use kube::core::Status;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// Time before the first and between later attempts to reach the API server again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How many nodes are listed at a time, where they are not streamed. An object has about ten thousand bytes.
const PAGE: u32 = 100;
/// In the bookmark that ends the list of a streamed one (Kubernetes API concepts, "Streaming lists").
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// One line of a watch.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

/// A page of a list.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Node>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    r#continue: Option<String>,
}

/// Why a watch ended.
enum End {
    /// as watches do: to be gone on with
    Over,
    /// what comes next is no longer known: to be listed again
    Gap(&'static str),
    /// what was heard is not to be relied on either, as where etcd was restored to an earlier state
    Doubt(&'static str),
    /// no contact, and how long the server wants to be left in peace
    Lost(String, Duration),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Gone => End::Gap("the server has forgotten what came next"),
            Failure::Throttled(why, wait) => End::Lost(why, wait),
            other => End::Lost(other.words(), Duration::ZERO),
        }
    }
}

/// Publishes the leases until it is dropped.
pub(super) async fn follow(store: KubeStore, publisher: Publisher) {
    let mut follower = Follower { store, publisher, roster: None, version: String::new(), streams: true };
    let mut retry = RETRY.0;
    loop {
        let mut heard = false;
        let end = follower.round(&mut heard).await;
        if heard {
            retry = RETRY.0;
        }
        let mut wait = Duration::ZERO;
        match end {
            End::Over => tracing::trace!("the watch is over"),
            End::Gap(why) => {
                tracing::debug!("{why}: listing the nodes again");
                follower.roster = None;
            }
            End::Doubt(why) => {
                tracing::debug!("{why}: listing the nodes anew");
                (follower.roster, follower.version) = (None, String::new());
            }
            End::Lost(why, asked) => {
                follower.publisher.down(format!("{}: {why}", follower.store.connection.name()));
                wait = asked;
            }
        }
        // Thousands of daemons that lost one server do not come back in step.
        tokio::time::sleep(wait + retry.mul_f64(rand::random_range(0.5..1.0))).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

struct Follower {
    store: KubeStore,
    publisher: Publisher,
    /// what is known as of `version`; none: to be listed
    roster: Option<Roster>,
    version: String,
    /// the server has not refused so far to stream a list
    streams: bool,
}

impl Follower {
    /// One watch, from its beginning to its end.
    async fn round(&mut self, heard: &mut bool) -> End {
        match self.begin().await {
            Ok((answer, turn)) => {
                *heard = true;
                let end = self.go_on(answer, turn).await;
                if let End::Lost(..) = end {
                    self.store.connection.give_up(turn);
                }
                end
            }
            Err(end) => end,
        }
    }

    /// Opens a watch that goes on from what is known, having learnt that first if it is not; and publishes it.
    async fn begin(&mut self) -> Result<(Answer, u64), End> {
        let own = match self.store.connection.node().await {
            Ok(own) => own.to_owned(),
            Err(error) => return Err(End::Lost(error.to_string(), Duration::ZERO)),
        };
        let options = &self.store.connection.options;
        let fresh = Roster::new(self.store.names.clone(), &options.families, &own);
        let opened = match &self.roster {
            Some(_) => self.watch(&WatchParams::default(), &self.version).await?,
            None if self.streams => match self.stream(fresh).await? {
                Some(opened) => opened,
                None => {
                    tracing::debug!("the server does not stream lists: asking for pages");
                    self.streams = false;
                    return Err(End::Over);
                }
            },
            None => {
                self.list(fresh).await?;
                self.watch(&WatchParams::default(), &self.version).await?
            }
        };
        self.publish();
        Ok(opened)
    }

    fn publish(&self) {
        if let Some(roster) = &self.roster {
            self.publisher.live(roster.listing());
        }
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> Result<(Answer, u64), End> {
        let request = self.store.nodes.watch(params, version);
        let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
        Ok(self.store.connection.open(request).await?)
    }

    /// Learns everything from the beginning of a watch, one object at a time. None: the server has no such lists.
    ///
    /// From the server's memory, which may lag behind but never behind what was known here (`NotOlderThan`); what it lacks
    /// comes right after.
    async fn stream(&mut self, mut fresh: Roster) -> Result<Option<(Answer, u64)>, End> {
        let from = if self.version.is_empty() { "0" } else { &self.version };
        let request = self.store.nodes.watch(&WatchParams::streaming_lists(), from);
        let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
        let (mut answer, turn) = match self.store.connection.open(request).await {
            Ok(opened) => opened,
            // Not in its version, or switched off.
            Err(Failure::Refused(_)) => return Ok(None),
            Err(failure) => return Err(failure.into()),
        };
        loop {
            // A server that does not know what it is asked for sends objects, and then nothing.
            let Ok(line) = timeout(PATIENCE, answer.line()).await else { return Ok(None) };
            let Some(line) = line? else {
                return Err(End::Lost("the list ended before its end".into(), Duration::ZERO));
            };
            let event: Event<'_> = parse(&line)?;
            match &*event.kind {
                "BOOKMARK" => {
                    let bookmark: Bookmark = parse(event.object.get().as_bytes())?;
                    let annotations = bookmark.metadata.annotations.unwrap_or_default();
                    if annotations.get(END_OF_LIST).is_none_or(|value| value != "true") {
                        return Ok(None);
                    }
                    (self.roster, self.version) = (Some(fresh), bookmark.metadata.resource_version);
                    return Ok(Some((answer, turn)));
                }
                // What it lacks for it, it finds out late: an etcd that is too old, for one.
                "ERROR" => return Ok(None),
                _ => drop(take(&mut fresh, &event)?),
            }
        }
    }

    /// Learns everything by pages.
    async fn list(&mut self, mut fresh: Roster) -> Result<(), End> {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let request = self.store.nodes.list(&params);
            let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
            let page: Page = self.store.connection.get(request).await?;
            for node in &page.items {
                fresh.put(node);
            }
            match page.metadata.r#continue.filter(|next| !next.is_empty()) {
                Some(next) => params = ListParams::default().limit(PAGE).continue_token(&next),
                None => {
                    (self.roster, self.version) = (Some(fresh), page.metadata.resource_version);
                    return Ok(());
                }
            }
        }
    }

    /// Takes in changes until the watch ends.
    async fn go_on(&mut self, mut answer: Answer, turn: u64) -> End {
        let (connection, silence) = (self.store.connection.clone(), self.store.connection.options.silence);
        let mut ended = std::pin::pin!(connection.ended(turn));
        loop {
            let line = tokio::select! {
                line = timeout(silence, answer.line()) => line,
                () = &mut ended => return End::Over,
            };
            // Bookmarks come every minute: this server does not say what it should, whatever it knows.
            let Ok(line) = line else {
                connection.give_up(turn);
                return End::Doubt("nothing was heard for too long");
            };
            let mut next = line.transpose();
            if next.is_none() {
                return End::Over;
            }
            let (mut changed, mut end) = (false, None);
            // Changes that came together are published together.
            while let (Some(line), None) = (next.take(), &end) {
                match line.map_err(End::from).and_then(|line| self.event(&line)) {
                    Ok(matters) => {
                        changed |= matters;
                        next = answer.line().now_or_never().and_then(Result::transpose);
                    }
                    Err(other) => end = Some(other),
                }
            }
            if changed {
                self.publish();
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Takes in one line. Returns whether it matters.
    fn event(&mut self, line: &[u8]) -> Result<bool, End> {
        let event: Event<'_> = parse(line)?;
        let version = match &*event.kind {
            "ERROR" => return Err(refusal(&event)),
            "BOOKMARK" => parse::<Bookmark>(event.object.get().as_bytes())?.metadata.resource_version,
            _ => {
                let Some(roster) = &mut self.roster else { return Ok(false) };
                let (version, matters) = take(roster, &event)?;
                self.version = version;
                return Ok(matters);
            }
        };
        if !version.is_empty() {
            self.version = version;
        }
        Ok(false)
    }
}

/// Takes in what became of a node. Returns the version of it, and whether it matters.
fn take(roster: &mut Roster, event: &Event<'_>) -> Result<(String, bool), Failure> {
    let node: Node = parse(event.object.get().as_bytes())?;
    let matters = match &*event.kind {
        "DELETED" => roster.remove(&node.metadata.name),
        _ => roster.put(&node),
    };
    Ok((node.metadata.resource_version, matters))
}

/// What the server says in place of going on.
fn refusal(event: &Event<'_>) -> End {
    let status: Status = serde_json::from_str(event.object.get()).unwrap_or_default();
    let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    match status.code {
        410 => Failure::Gone.into(),
        _ => End::Lost(
            format!("the server has ended the watch: {}", status.message),
            Duration::from_secs(wait.min(30).into()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::annotations::Names;
    use super::*;
    use crate::family::Family;
    use std::sync::Arc;

    #[test]
    fn what_is_no_event_changes_nothing() {
        let names = Arc::new(Names::new("flannel.alpha.coreos.com").unwrap());
        let mut roster = Roster::new(names, &[Family::V4], "own");
        for line in [
            "",
            "{",
            "null",
            r#"{"type":"ADDED"}"#,
            r#"{"type":7,"object":{}}"#,
            r#"{"type":"ADDED","object":null}"#,
            r#"{"type":"ADDED","object":{"metadata":{"name":7}}}"#,
            r#"{"type":"ADDED","object":{"metadata":{"annotations":{"a":{}}}}}"#,
            r#"{"type":"ADDED","object":{"spec":{"podCIDRs":"10.5.1.0/24"}}}"#,
        ] {
            let taken = parse(line.as_bytes()).and_then(|event| take(&mut roster, &event));
            assert!(matches!(taken, Err(Failure::Away(_))), "{line}: {taken:?}");
        }
        // Of a later version of the API, perhaps.
        let event = parse(br#"{"type":"ADDED","object":{"metadata":{"name":"n","later":[1]},"later":{}}}"#).unwrap();
        assert!(take(&mut roster, &event).is_ok_and(|(_, matters)| !matters));
        assert!(roster.listing().leases.is_empty());
    }
}
