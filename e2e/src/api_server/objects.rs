//! The objects, their history, and the requests for them.

use super::http::{Reply, Request};
use super::patch;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// How many changes a watch may lag behind.
const HISTORY: usize = 20_000;

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// of HTTP
    pub method: String,
    /// without the query
    pub path: String,
    /// is it a watch, and is the list to be streamed?
    pub watch: (bool, bool),
    /// from where a watch or a list goes on
    pub version: String,
    /// how long a watch is asked for, in seconds
    pub seconds: String,
    /// what was sent
    pub body: String,
}

impl Call {
    pub(super) fn of(request: &Request) -> Self {
        Call {
            method: request.method.clone(),
            path: request.path.clone(),
            watch: (request.flag("watch"), request.flag("sendInitialEvents")),
            version: request.parameter("resourceVersion").into(),
            seconds: request.parameter("timeoutSeconds").into(),
            body: request.body.clone(),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub struct Faults {
    /// nothing is answered, and nothing closed, as by a machine that hangs
    pub hangs: bool,
    /// requests wait in a queue and are not answered; watches that stand go on
    pub queues: bool,
    /// so many requests are told to come again, after so many seconds
    pub throttled: (usize, u64),
    /// so many patches meet another one
    pub conflicts: usize,
    /// nobody may do anything
    pub forbids: bool,
    /// unlike with flannel's ClusterRole, daemons may make events
    pub takes_events: bool,
    /// lists are not streamed
    pub no_streams: bool,
    /// so many streamed lists break off in an error with this code, and when to come again, in seconds
    pub broken_streams: (usize, u16, u64),
    /// streamed lists come to a halt
    pub halted_streams: bool,
    /// a watch ends as soon as it has begun, without a word
    pub empty_watches: bool,
    /// time between two bookmarks
    pub bookmarks: Duration,
    /// after so long a watch is ended, whatever the client wants
    pub watches: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            hangs: false,
            queues: false,
            throttled: (0, 0),
            conflicts: 0,
            forbids: false,
            takes_events: false,
            no_streams: false,
            broken_streams: (0, 0, 0),
            halted_streams: false,
            empty_watches: false,
            bookmarks: Duration::from_secs(60),
            watches: Duration::from_secs(1800),
        }
    }
}

impl Faults {
    /// The error in which a streamed list breaks off, if it does.
    pub(super) fn break_off(&mut self) -> Option<Value> {
        let (left, code, seconds) = self.broken_streams;
        self.broken_streams.0 = left.checked_sub(1)?;
        let mut status = super::http::status(code, "Fault", "the list has broken off");
        status["details"] = json!({"retryAfterSeconds": seconds});
        Some(status)
    }

    /// What a request meets, if anything.
    pub(super) fn strike(&mut self, request: &Request) -> Option<Reply> {
        if self.forbids {
            return Some(Reply::error(403, "Forbidden", "User \"system:serviceaccount:x\" cannot do this"));
        }
        if let (Some(left), seconds) = (self.throttled.0.checked_sub(1), self.throttled.1) {
            self.throttled.0 = left;
            // Both forms are seen: of the server's own limits, and of its queues.
            return Some(if left % 2 == 0 {
                Reply::Text(429, "Too many requests, please try again later.", seconds)
            } else {
                let mut status =
                    super::http::status(429, "TooManyRequests", "the server has received too many requests");
                status["details"] = json!({"retryAfterSeconds": seconds});
                Reply::Later(429, status, seconds)
            });
        }
        if let (true, Some(left)) = (request.method == "PATCH", self.conflicts.checked_sub(1)) {
            self.conflicts = left;
            return Some(Reply::error(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to it",
            ));
        }
        None
    }
}

/// One change.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: &'static str,
    pub(super) object: Arc<Value>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct State {
    /// counts the lives of the server
    pub(super) life: u64,
    /// resource version of the last change
    pub(super) version: u64,
    /// what came up to here is forgotten
    pub(super) forgotten: u64,
    pub(super) nodes: BTreeMap<String, Arc<Value>>,
    pub(super) pods: BTreeMap<String, Value>,
    pub(super) events: Vec<Value>,
    pub(super) history: VecDeque<Change>,
    /// lists that are being read by pages
    lists: BTreeMap<u64, Vec<Arc<Value>>>,
    pub(super) faults: Faults,
    pub(super) calls: Vec<Call>,
    pub(super) connections: Vec<TcpStream>,
    /// counts the objects, for their uids
    created: u64,
}

/// A Node object about as kubelet makes it, with a good part of what is of no interest here.
pub(super) fn node(name: &str, pod_cidrs: &[&str]) -> Value {
    let images: Vec<Value> = (0..20)
        .map(|number| json!({"names": [format!("registry.example.org/group/image-{number}@sha256:{number:064x}")], "sizeBytes": number}))
        .collect();
    let fields: serde_json::Map<String, Value> =
        (0..60).map(|number| (format!("f:field-with-a-name-{number}"), json!({}))).collect();
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": fields}}],
        },
        "spec": {},
        "status": {
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}],
            "images": images,
        },
    });
    if let Some(first) = pod_cidrs.first() {
        node["spec"] = json!({"podCIDR": first, "podCIDRs": pod_cidrs});
    }
    node
}

impl State {
    fn note(&mut self, kind: &'static str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        self.history.push_back(Change { version: self.version, kind, object: object.clone() });
        while self.history.len() > HISTORY {
            self.forgotten = self.history.pop_front().map_or(self.forgotten, |change| change.version);
        }
        object
    }

    pub(super) fn compact(&mut self) {
        // As a change somewhere else in the store: what was read before is older than what is forgotten.
        self.version += 1;
        self.forgotten = self.version;
        self.history.clear();
        self.lists.clear();
    }

    pub(super) fn get(&self, name: &str) -> Result<Reply, Reply> {
        let node = self.nodes.get(name).ok_or_else(|| Reply::missing("nodes", name))?;
        Ok(Reply::Json(200, Value::clone(node)))
    }

    pub(super) fn create(&mut self, mut node: Value) -> Result<Reply, Reply> {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.nodes.contains_key(&name) {
            return Err(Reply::error(409, "AlreadyExists", &format!("nodes \"{name}\" already exists")));
        }
        self.created += 1;
        node["metadata"]["uid"] = format!("00000000-0000-4000-8000-{:012x}", self.created).into();
        let node = self.note("ADDED", node);
        self.nodes.insert(name, node.clone());
        Ok(Reply::Json(201, Value::clone(&node)))
    }

    pub(super) fn delete(&mut self, name: &str) -> Option<Value> {
        let node = self.nodes.remove(name)?;
        Some(Value::clone(&self.note("DELETED", Value::clone(&node))))
    }

    pub(super) fn patch(
        &mut self,
        name: &str,
        subresource: Option<&str>,
        kind: patch::Kind,
        patch: &Value,
    ) -> Result<Reply, Reply> {
        let before = self.nodes.get(name).ok_or_else(|| Reply::missing("nodes", name))?;
        let mut after = Value::clone(before);
        for (field, code, reason) in [("uid", 422, "Invalid"), ("resourceVersion", 409, "Conflict")] {
            let wanted = &patch["metadata"][field];
            if !wanted.is_null() && *wanted != before["metadata"][field] {
                return Err(Reply::error(code, reason, &format!("nodes \"{name}\": {field} has changed")));
            }
        }
        patch::apply(kind, &mut after, patch);
        // Each way in leaves the other half alone.
        let kept = if subresource.is_some() { "spec" } else { "status" };
        if let Some(members) = after.as_object_mut() {
            members.remove(kept);
            members.extend(before.get(kept).map(|half| (kept.to_owned(), half.clone())));
        }
        if !before["spec"]["podCIDRs"].is_null() && after["spec"]["podCIDRs"] != before["spec"]["podCIDRs"] {
            return Err(Reply::error(422, "Invalid", "spec.podCIDRs: Forbidden: node updates may not change podCIDR"));
        }
        if after == **before {
            return Ok(Reply::Json(200, after));
        }
        let after = self.note("MODIFIED", after);
        self.nodes.insert(name.into(), after.clone());
        Ok(Reply::Json(200, Value::clone(&after)))
    }

    /// A list, or a page of one: all pages show one moment.
    pub(super) fn list(&mut self, request: &Request) -> Result<Reply, Reply> {
        let limit: usize = request.parameter("limit").parse().unwrap_or(0);
        let token = request.parameter("continue");
        let (version, skip) = match token.split_once('-') {
            Some((version, skip)) => (version.parse().unwrap_or(0), skip.parse().unwrap_or(0)),
            None => (self.version, 0),
        };
        let items = if token.is_empty() {
            self.nodes.values().cloned().collect()
        } else {
            let expired = "The provided continue parameter is too old to display a consistent list result.";
            self.lists.remove(&version).ok_or_else(|| Reply::error(410, "Expired", expired))?
        };
        let end = if limit == 0 { items.len() } else { items.len().min(skip + limit) };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if end < items.len() {
            metadata["continue"] = format!("{version}-{end}").into();
            metadata["remainingItemCount"] = (items.len() - end).into();
        }
        let page: Vec<Value> = items.get(skip..end).unwrap_or_default().iter().map(|node| Value::clone(node)).collect();
        if end < items.len() {
            self.lists.insert(version, items);
        }
        Ok(Reply::Json(200, json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": page})))
    }
}
