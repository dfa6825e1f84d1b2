//! A Kubernetes API server in memory, as far as a node's network daemon has to do with one: Node and Pod objects, with list,
//! watch and patch as the real one has them, and the faults that a real one shows. The lease store's contract tests hold it to
//! a real one, where there is one.
//!
//! With the standard library only, so that it shares no mistake with the client that it is asked by.

mod http;
mod objects;
mod patch;
mod watch;

use http::{Reply, Request};
use objects::State;
use serde_json::{Value, json};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use objects::{Call, Faults};

/// Whoever comes with this bearer token may do everything; all others, what flannel's ClusterRole allows.
pub const ADMIN: &str = "admin";
/// How long a thread may take to notice that it is no longer wanted.
const LOOK: Duration = Duration::from_millis(5);

/// A server; it ends when this is dropped.
#[derive(Debug, Default)]
pub struct ApiServer {
    world: Arc<World>,
}

#[derive(Debug, Default)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the state, for at most `limit`.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.lock());
        self.changed.notify_all();
        outcome
    }
}

impl ApiServer {
    /// A server without objects, which nobody can reach yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves at `listener` from now on, whichever network namespace that is in. Returns its address.
    ///
    /// # Errors
    /// What the listener says.
    pub fn serve(&self, listener: TcpListener) -> std::io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (world, life) = (self.world.clone(), self.world.lock().life);
        std::thread::spawn(move || {
            while world.lock().life == life {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let world = world.clone();
                        std::thread::spawn(move || converse(&world, life, stream));
                    }
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Ok(address)
    }

    /// Ends every connection, and takes no more. The objects stay.
    pub fn stop(&self) {
        self.world.change(|state| {
            state.life += 1;
            state.connections.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        });
    }

    /// Sets what goes wrong from now on.
    pub fn faults(&self, set: impl FnOnce(&mut Faults)) {
        self.world.change(|state| set(&mut state.faults));
    }

    /// Ends every connection without taking leave; new ones are taken.
    pub fn cut(&self) {
        self.world.change(|state| state.connections.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both))));
    }

    /// Forgets all history: whoever was away has to list again.
    pub fn compact(&self) {
        self.world.change(State::compact);
    }

    /// Puts a Node object there with these podCIDRs, in place of one that was there.
    pub fn put_node(&self, name: &str, pod_cidrs: &[&str]) {
        self.put_annotated_node(name, pod_cidrs, &json!({}));
    }

    /// The same, with annotations.
    pub fn put_annotated_node(&self, name: &str, pod_cidrs: &[&str], annotations: &Value) {
        let mut node = objects::node(name, pod_cidrs);
        node["metadata"]["annotations"] = annotations.clone();
        self.world.change(|state| {
            state.delete(name);
            state.create(node).map(drop).unwrap_or_default();
        });
    }

    /// Gives podCIDRs to a node that has none, as kube-controller-manager does.
    pub fn give(&self, name: &str, pod_cidrs: &[&str]) {
        let patch = json!({"spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs}});
        self.world.change(|state| state.patch(name, None, patch::Kind::Merge, &patch).map(drop).unwrap_or_default());
    }

    /// Deletes a Node object.
    pub fn delete_node(&self, name: &str) {
        self.world.change(|state| state.delete(name));
    }

    /// Sets an annotation of a node.
    pub fn annotate(&self, name: &str, annotation: &str, value: &str) {
        let patch = json!({"metadata": {"annotations": {annotation: value}}});
        self.world.change(|state| state.patch(name, None, patch::Kind::Merge, &patch).map(drop).unwrap_or_default());
    }

    /// A kubelet tells that its node is alive: nothing but a time changes.
    pub fn heartbeat(&self, name: &str) {
        self.world.change(|state| {
            let beat = state.version.to_string();
            let condition = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": beat});
            let patch = json!({"status": {"conditions": [condition]}});
            state.patch(name, Some("status"), patch::Kind::Strategic, &patch).map(drop).unwrap_or_default();
        });
    }

    /// A Node object as it is.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.world.lock().nodes.get(name).map(|node| Value::clone(node))
    }

    /// Puts a Pod object there, on a node.
    pub fn put_pod(&self, namespace: &str, name: &str, node: &str) {
        self.world.change(|state| {
            state.pods.insert(
                format!("{namespace}/{name}"),
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
                                   "spec": {"nodeName": node}}),
            )
        });
    }

    /// Takes the requests so far that were no administrator's, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.world.lock().calls)
    }

    /// Takes the events that were made so far.
    pub fn events(&self) -> Vec<Value> {
        std::mem::take(&mut self.world.lock().events)
    }

    /// How many connections have been made that still stand.
    pub fn connections(&self) -> usize {
        self.world.lock().connections.len()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One connection, request after request.
fn converse(world: &World, life: u64, stream: TcpStream) {
    // Whatever goes wrong with a connection is the client's to notice.
    let (Ok(()), Ok(()), Ok(registered)) =
        (stream.set_nonblocking(false), stream.set_nodelay(true), stream.try_clone())
    else {
        return;
    };
    world.change(|state| state.connections.push(registered));
    let Ok(mut connection) = http::Connection::new(stream) else { return };
    while let Ok(Some(request)) = connection.request() {
        if !stand_still(world, life) {
            break;
        }
        let reply = world.change(|state| answer(state, &request));
        if !stand_still(world, life) {
            break;
        }
        let done = match reply {
            Reply::Watch(watch) => watch.run(world, life, &mut connection),
            other => connection.reply(&other),
        };
        if done.is_err() {
            break;
        }
    }
    connection.close();
}

/// While the server or its queue hangs, nothing is said and nothing is closed. False: it has ended.
fn stand_still(world: &World, life: u64) -> bool {
    let mut state = world.lock();
    while (state.faults.hangs || state.faults.queues) && state.life == life {
        state = world.wait(state, Duration::from_millis(50));
    }
    state.life == life
}

/// Carries out a request.
fn answer(state: &mut State, request: &Request) -> Reply {
    let admin = request.header("authorization") == Some(&format!("Bearer {ADMIN}"));
    if !admin {
        state.calls.push(Call::of(request));
        if let Some(refusal) = state.faults.strike(request) {
            return refusal;
        }
        let is_event = request.path.ends_with("/events") && state.faults.takes_events;
        if !is_allowed(request) && !is_event {
            return Reply::error(403, "Forbidden", &format!("{} {} is forbidden", request.method, request.path));
        }
    }
    let path: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let outcome = match (request.method.as_str(), path.as_slice()) {
        ("GET", ["api", "v1", "nodes"]) if request.flag("watch") => watch::open(state, request),
        ("GET", ["api", "v1", "nodes"]) => state.list(request),
        ("POST", ["api", "v1", "nodes"]) => request.json().and_then(|node| state.create(node)),
        ("GET", ["api", "v1", "nodes", name]) => state.get(name),
        ("DELETE", ["api", "v1", "nodes", name]) => match state.delete(name) {
            Some(node) => Ok(Reply::Json(200, node)),
            None => Err(Reply::missing("nodes", name)),
        },
        ("PATCH", ["api", "v1", "nodes", name]) => {
            patch::of(request).and_then(|(kind, patch)| state.patch(name, None, kind, &patch))
        }
        ("PATCH", ["api", "v1", "nodes", name, "status"]) => {
            patch::of(request).and_then(|(kind, patch)| state.patch(name, Some("status"), kind, &patch))
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => state
            .pods
            .get(&format!("{namespace}/{name}"))
            .map(|pod| Reply::Json(200, pod.clone()))
            .ok_or_else(|| Reply::missing("pods", name)),
        ("POST", ["api", "v1", "namespaces", _, "events"]) => request.json().map(|event| {
            state.events.push(event.clone());
            Reply::Json(201, event)
        }),
        _ => Err(Reply::error(404, "NotFound", "the server could not find the requested resource")),
    };
    outcome.unwrap_or_else(|refusal| refusal)
}

/// What flannel's ClusterRole allows.
fn is_allowed(request: &Request) -> bool {
    let path: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    matches!(
        (request.method.as_str(), path.as_slice()),
        ("GET", ["api", "v1", "nodes"] | ["api", "v1", "nodes", _])
            | ("PATCH", ["api", "v1", "nodes", _, "status"])
            | ("GET", ["api", "v1", "namespaces", _, "pods", _])
    )
}
