//! Following the Node objects: a list, streamed where the server can, then every change since; on from the last change after
//! an interruption, and all over again when the server no longer knows what came after that.

use super::KubeStore;
use super::connection::{Answer, Failure, PATIENCE, meaning, parse, spread};
use super::list;
use super::node::Node;
use super::roster::Roster;
use crate::store::snapshot::Publisher;
use futures::FutureExt;
use kube::core::Status;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Time before the first and between later attempts to reach the API server again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How soon a server tells that it cannot go on from where it was asked to.
const PROMPT: Duration = Duration::from_millis(200);
/// A watch that has lasted so long was a good one, though nothing was heard on it.
const GOOD: Duration = Duration::from_secs(5);
/// How long a watch is asked for, in seconds: drawn anew each time, lest those of all nodes end in step.
const LENGTH: std::ops::RangeInclusive<u32> = 150..=290;
/// How often a server may be found to be behind what is known here. One that lags catches up soon.
const BEHIND: u32 = 3;
/// In the bookmark that ends the list of a streamed one (Kubernetes API concepts, "Streaming lists").
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

/// Why a watch ended.
enum End {
    /// as watches do: to be gone on with
    Over,
    /// what comes next is no longer known: to be listed again
    Gap(&'static str),
    /// what was heard is not to be relied on either, as where etcd was restored to an earlier state
    Doubt(&'static str),
    /// the server does not know yet what is known here, and when it wants to be asked again
    Behind(String, Duration),
    /// no contact, and how long the server wants to be left in peace
    Lost(String, Duration),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Gone => End::Gap("the server has forgotten what came next"),
            Failure::Throttled(why, wait) => End::Lost(why, wait),
            Failure::Behind(why, wait) => End::Behind(why, wait),
            other => End::Lost(other.words(), Duration::ZERO),
        }
    }
}

/// Publishes the leases until it is dropped.
pub(super) async fn follow(store: KubeStore, publisher: Publisher) {
    let mut follower = Follower {
        store,
        publisher,
        roster: None,
        version: String::new(),
        doubtful: false,
        refused: None,
        behind: 0,
        good: false,
    };
    let (mut retry, mut gap) = (RETRY.0, false);
    loop {
        let end = follower.round().await;
        // Not for the head of an answer, nor for a list: who gets no further would come for it again and again.
        if std::mem::take(&mut follower.good) {
            (retry, gap) = (RETRY.0, false);
        }
        let mut wait = Duration::ZERO;
        match end {
            End::Over => tracing::trace!("the watch is over"),
            End::Gap(why) => {
                tracing::debug!("{why}: listing the nodes again");
                // The server is there, and what happened meanwhile is not known: only who comes for lists again and again waits.
                if follower.roster.take().is_some() && !std::mem::replace(&mut gap, true) {
                    retry = RETRY.0;
                }
            }
            End::Doubt(why) => {
                tracing::debug!("{why}: listing the nodes anew");
                follower.forget();
            }
            End::Behind(why, asked) => {
                follower.publisher.down(format!("{}: {why}", follower.store.connection.name()));
                follower.behind += 1;
                // An etcd that was restored to an earlier state does not catch up.
                if follower.behind >= BEHIND {
                    follower.forget();
                }
                wait = asked;
            }
            End::Lost(why, asked) => {
                follower.publisher.down(format!("{}: {why}", follower.store.connection.name()));
                if asked.is_zero() {
                    // Another server may do better.
                    follower.store.connection.give_up(follower.store.connection.turn());
                }
                wait = asked;
            }
        }
        tokio::time::sleep((wait + retry).mul_f64(spread())).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

struct Follower {
    store: KubeStore,
    publisher: Publisher,
    /// what is known as of `version`; none: to be listed
    roster: Option<Roster>,
    version: String,
    /// what the server has in memory is not to be relied on
    doubtful: bool,
    /// the turn of the client that was told that lists are not streamed
    refused: Option<u64>,
    /// how often the server was behind `version` since the last list
    behind: u32,
    /// the last watch was no failure
    good: bool,
}

impl Follower {
    /// Nothing that was known is to be relied on.
    fn forget(&mut self) {
        (self.roster, self.version, self.doubtful, self.behind) = (None, String::new(), true, 0);
    }

    /// One watch, from its beginning to its end.
    async fn round(&mut self) -> End {
        match self.begin().await {
            Ok((answer, turn)) => {
                let start = Instant::now();
                let end = self.go_on(answer, turn).await;
                self.good |= start.elapsed() >= GOOD;
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
        let store = self.store.clone();
        let fresh = || Roster::new(store.names.clone(), &store.connection.options.families, &own);
        if self.roster.is_none() && self.refused != Some(self.store.connection.turn()) {
            if let Some(opened) = self.stream(fresh()).await? {
                self.publish();
                return Ok(opened);
            }
            tracing::debug!("the server does not stream lists: asking for a whole one");
            self.refused = Some(self.store.connection.turn());
        }
        if self.roster.is_none() {
            self.list(fresh()).await?;
        }
        let (mut answer, turn) = self.watch().await?;
        // Whether the server still knows what came next it tells in its first line, and until then nothing is known anew. What
        // has happened meanwhile comes with it.
        let mut next = timeout(PROMPT, answer.line()).await.ok();
        while let Some(line) = next {
            let Some(line) = line? else {
                self.publish();
                return Err(End::Over);
            };
            self.event(&line)?;
            self.good = true;
            next = answer.line().now_or_never();
        }
        self.publish();
        Ok((answer, turn))
    }

    fn publish(&self) {
        if let Some(roster) = &self.roster {
            self.publisher.live(roster.listing());
        }
    }

    async fn watch(&self) -> Result<(Answer, u64), End> {
        let params = WatchParams::default().timeout(rand::random_range(LENGTH));
        let request = self.store.nodes.watch(&params, &self.version);
        let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
        Ok(self.store.connection.open(request).await?)
    }

    /// From where to learn everything: from the server's memory, which may lag behind but never behind what was known here
    /// (`NotOlderThan`); what it lacks comes right after.
    fn start(&self) -> &str {
        if self.version.is_empty() { "0" } else { &self.version }
    }

    fn learnt(&mut self, roster: Roster, version: String) {
        (self.roster, self.version, self.doubtful, self.behind) = (Some(roster), version, false, 0);
    }

    /// Learns everything from the beginning of a watch, one object at a time. None: the server has no such lists.
    async fn stream(&mut self, mut fresh: Roster) -> Result<Option<(Answer, u64)>, End> {
        let params = WatchParams::streaming_lists().timeout(rand::random_range(LENGTH));
        let request = self.store.nodes.watch(&params, self.start());
        let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
        let (mut answer, turn) = match self.store.connection.open(request).await {
            Ok(opened) => opened,
            // Not in its version, or switched off.
            Err(Failure::Refused(_)) => return Ok(None),
            Err(failure) => return Err(failure.into()),
        };
        loop {
            let Ok(line) = timeout(PATIENCE, answer.line()).await else {
                return Err(End::Lost("the list has come to a halt".into(), Duration::ZERO));
            };
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
                    self.learnt(fresh, bookmark.metadata.resource_version);
                    return Ok(Some((answer, turn)));
                }
                "ERROR" => {
                    return match refusal(&event) {
                        // What it lacks for it, it finds out late, as an error of its own: an etcd that is too old, for one.
                        (_, Failure::Refused(_)) | (500, Failure::Away(_)) => Ok(None),
                        (_, failure) => Err(failure.into()),
                    };
                }
                _ => drop(take(&mut fresh, &event)?),
            }
        }
    }

    /// Learns everything from a whole list: of the server's memory, so that a herd of nodes is no matter to etcd.
    async fn list(&mut self, mut fresh: Roster) -> Result<(), End> {
        let mut params = match self.doubtful {
            true => ListParams::default(),
            false => ListParams::default().matching(VersionMatch::NotOlderThan).at(self.start()),
        };
        loop {
            let request = self.store.nodes.list(&params);
            let request = request.map_err(|error| End::Lost(error.to_string(), Duration::ZERO))?;
            let (answer, _) = self.store.connection.open(request).await?;
            let put = |object: &[u8]| {
                fresh.put(&parse(object)?);
                Ok(())
            };
            let list = list::read(answer, put).await?;
            // Not asked for, and possible all the same.
            match list.r#continue.filter(|next| !next.is_empty()) {
                Some(next) => params = ListParams::default().continue_token(&next),
                None => {
                    self.learnt(fresh, list.resource_version);
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
                        self.good = true;
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
            "ERROR" => return Err(refusal(&event).1.into()),
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
pub(super) fn take(roster: &mut Roster, event: &Event<'_>) -> Result<(String, bool), Failure> {
    let node: Node = parse(event.object.get().as_bytes())?;
    let matters = match &*event.kind {
        "DELETED" => roster.remove(&node.metadata.name),
        _ => roster.put(&node),
    };
    Ok((node.metadata.resource_version, matters))
}

/// What the server says in place of going on, with the code of it.
pub(super) fn refusal(event: &Event<'_>) -> (u16, Failure) {
    let status: Status = serde_json::from_str(event.object.get()).unwrap_or_default();
    let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let message = format!("the server has ended the watch: {}", status.message);
    (status.code, meaning(status.code, &message, wait.into()))
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
