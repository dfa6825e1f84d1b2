//! Watches: what has happened since a version, and what happens from then on, line by line.

use super::World;
use super::http::{Connection, Reply, Request, status};
use super::objects::State;
use serde_json::{Value, json};
use std::io;
use std::time::{Duration, Instant};

/// A watch that was asked for.
#[derive(Debug)]
pub(super) struct Watch {
    /// what it begins with
    first: Vec<String>,
    /// the last version that it has seen
    seen: u64,
    bookmarks: bool,
    /// nothing comes after that
    is_over: bool,
    end: Instant,
}

/// Begins a watch.
pub(super) fn open(state: &mut State, request: &Request) -> Result<Reply, Reply> {
    let invalid =
        |what: &str| Reply::error(422, "Invalid", &format!("ListOptions.meta.k8s.io \"\" is invalid: {what}"));
    let (bookmarks, version) = (request.flag("allowWatchBookmarks"), request.parameter("resourceVersion"));
    let streams = !request.parameter("sendInitialEvents").is_empty();
    if streams && state.faults.no_streams {
        return Err(invalid("sendInitialEvents: Forbidden: for watch unless the WatchList feature gate is enabled"));
    }
    if streams && request.parameter("resourceVersionMatch") != "NotOlderThan" {
        return Err(invalid("resourceVersionMatch: Forbidden: sendInitialEvents requires NotOlderThan"));
    }
    let mut first = Vec::new();
    let from_now = matches!(version, "" | "0");
    if request.flag("sendInitialEvents") || (from_now && !streams) {
        first.extend(state.nodes.values().map(|node| line("ADDED", node)));
    }
    let mut is_over = state.faults.empty_watches;
    if is_over {
        first.clear();
    } else if let Some(broken) = streams.then(|| state.faults.break_off()).flatten() {
        first.push(line("ERROR", &broken));
        is_over = true;
    } else if request.flag("sendInitialEvents") && bookmarks && !state.faults.halted_streams {
        let mut bookmark = bookmark(state.version);
        bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        first.push(line("BOOKMARK", &bookmark));
    }
    let seen = if from_now || request.flag("sendInitialEvents") { Ok(state.version) } else { version.parse() };
    let wanted = request.parameter("timeoutSeconds").parse().map_or(Duration::MAX, Duration::from_secs);
    Ok(Reply::Watch(Watch {
        first,
        seen: seen.map_err(|_| invalid("resourceVersion: Invalid value"))?,
        bookmarks,
        is_over,
        end: Instant::now() + wanted.min(state.faults.watches),
    }))
}

fn bookmark(version: u64) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "spec": {}, "status": {}})
}

fn line(kind: &str, object: &Value) -> String {
    // In the order of the real one, in which the type comes first.
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

impl Watch {
    /// Tells the client until the time is over, one of the two goes, or the history was lost.
    pub(super) fn run(mut self, world: &World, life: u64, connection: &mut Connection) -> io::Result<()> {
        connection.begin()?;
        for first in self.first.drain(..) {
            connection.part(&first)?;
        }
        if self.is_over {
            return connection.part("");
        }
        let mut told = Instant::now();
        loop {
            let mut lines = String::new();
            let mut over = false;
            {
                let mut state = world.lock();
                if state.life != life {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                if !state.faults.hangs {
                    over = Instant::now() >= self.end;
                    if self.seen < state.forgotten {
                        let old = status(410, "Expired", "too old resource version");
                        lines = line("ERROR", &old);
                        over = true;
                    } else {
                        let behind = state.history.partition_point(|change| change.version <= self.seen);
                        for change in state.history.iter().skip(behind) {
                            lines.push_str(&line(change.kind, &change.object));
                        }
                        self.seen = self.seen.max(state.version);
                        if self.bookmarks && lines.is_empty() && (over || told.elapsed() >= state.faults.bookmarks) {
                            lines = line("BOOKMARK", &bookmark(self.seen));
                        }
                    }
                }
                if lines.is_empty() && !over {
                    let limit = state.faults.bookmarks.min(Duration::from_millis(50));
                    state = world.wait(state, limit);
                    drop(state);
                    continue;
                }
            }
            if !lines.is_empty() {
                told = Instant::now();
                connection.part(&lines)?;
            }
            if over {
                return connection.part("");
            }
        }
    }
}
