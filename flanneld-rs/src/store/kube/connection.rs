//! Requests to the API server: each in bounded time and size, and made anew where a connection or a credential has failed.

use super::KubeOptions;
use super::credentials::{self, chain};
use super::node::Pod;
use crate::store::StoreError;
use axum::http;
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::core::Status;
use kube::core::params::GetParams;
use kube::core::request::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

/// How long the server may take for the head of an answer, and for each further part of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A connection on which nothing is heard for the first time is probed, at intervals of the second, so often; then it is dead.
/// The other end may have gone without a word.
const PROBES: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);
/// How long sent data may go without being acknowledged, which probes do not see.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Longest object that is read; etcd holds none of more than 1.5 MiB.
pub(super) const MAX_OBJECT: usize = 4 << 20;
/// The longest that we wait because the server asks for it.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How often a throttled request is made again.
const ATTEMPTS: usize = 4;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// no such object
    Missing,
    /// the history asked for is no longer there
    Gone,
    /// somebody else was faster
    Conflict(String),
    /// the server has too much to do, and says when to come again
    Throttled(String, Duration),
    /// the server does not know yet of the version that was asked for, and says when to come again
    Behind(String, Duration),
    /// it does not do such things: asking again does not help
    Refused(String),
    /// it does not do them for us
    Forbidden(String),
    /// the connection has failed, and the client with it
    Broken(String),
    /// it cannot be asked, or does not let us: may pass
    Away(String),
}

impl Failure {
    /// What to tell of it, with what was being done.
    pub(super) fn error(self, doing: &str) -> StoreError {
        match self {
            Self::Refused(why) => StoreError::Invalid(format!("{doing}: {why}")),
            other => StoreError::Unavailable(format!("{doing}: {}", other.words())),
        }
    }

    pub(super) fn words(self) -> String {
        match self {
            Self::Missing => "it is not there".into(),
            Self::Gone => "the history that was asked for is gone".into(),
            Self::Conflict(why)
            | Self::Throttled(why, _)
            | Self::Behind(why, _)
            | Self::Refused(why)
            | Self::Broken(why)
            | Self::Away(why) => why,
            Self::Forbidden(why) => format!(
                "{why} (the ClusterRole must allow: get of pods; get, list and watch of nodes; patch of nodes/status)"
            ),
        }
    }
}

/// The way to the API server.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) options: KubeOptions,
    state: watch::Sender<State>,
    node: OnceCell<String>,
}

#[derive(Default)]
struct State {
    /// counts the clients given up
    turn: u64,
    client: Option<Client>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "connection {}", self.turn)
    }
}

impl Connection {
    pub(super) fn new(options: KubeOptions) -> Self {
        Self { options, state: watch::Sender::default(), node: OnceCell::new() }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match (&self.options.api_url, &self.options.kubeconfig) {
            (Some(url), _) => format!("Kubernetes API at {url}"),
            (None, Some(path)) => format!("Kubernetes API of {}", path.display()),
            (None, None) => "Kubernetes API".into(),
        }
    }

    /// The name of this node: as it was given, or of the node that this pod is on.
    pub(super) async fn node(&self) -> Result<&str, StoreError> {
        let name = self.node.get_or_try_init(|| async {
            if let Some(name) = &self.options.node {
                return Ok(name.clone());
            }
            let Some((namespace, pod)) = &self.options.pod else {
                return Err(StoreError::Invalid(
                    "the name of this node is not known: set NODE_NAME (--node-name), or POD_NAME and POD_NAMESPACE"
                        .into(),
                ));
            };
            let doing = format!("asking which node pod {namespace}/{pod} is on");
            let pods = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
            let request = pods.get(pod, &GetParams::default()).map_err(|error| invalid(&doing, &error))?;
            let found: Pod = self.get(request).await.map_err(|failure| failure.error(&doing))?;
            found.node().ok_or_else(|| StoreError::Unavailable(format!("{doing}: on none yet")))
        });
        name.await.map(String::as_str)
    }

    /// See [`super::KubeStore::moved`].
    pub(super) fn moved(&self) {
        self.give_up(self.turn());
    }

    /// Which client requests are made with.
    pub(super) fn turn(&self) -> u64 {
        self.state.borrow().turn
    }

    /// The client of this turn has failed: the next request reads the credentials and connects anew.
    pub(super) fn give_up(&self, turn: u64) {
        self.state.send_if_modified(|state| {
            let is_present = state.turn == turn;
            if is_present {
                (state.turn, state.client) = (turn.wrapping_add(1), None);
            }
            is_present
        });
    }

    /// Returns when the client of this turn was given up.
    pub(super) async fn ended(&self, turn: u64) {
        // The sender lives as long as we do.
        let _ = self.state.subscribe().wait_for(|state| state.turn != turn).await;
    }

    async fn client(&self) -> Result<(Client, u64), Failure> {
        let (turn, present) = {
            let state = self.state.borrow();
            (state.turn, state.client.clone())
        };
        if let Some(client) = present {
            return Ok((client, turn));
        }
        let client = self.connect().await?;
        self.state.send_if_modified(|state| {
            if state.turn == turn {
                state.client = Some(client.clone());
            }
            false
        });
        Ok((client, turn))
    }

    /// kube's own stack, but with probes that find a peer that has gone without a word.
    async fn connect(&self) -> Result<Client, Failure> {
        let config = credentials::read(&self.options).await.map_err(|error| Failure::Away(error.to_string()))?;
        let unusable = |error: kube::Error| Failure::Away(format!("credentials: {}", chain(&error)));
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_PATIENCE));
        connector.set_keepalive(Some(PROBES.0));
        connector.set_keepalive_interval(Some(PROBES.1));
        connector.set_keepalive_retries(Some(PROBES.2));
        connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let connector = config.rustls_https_connector_with_connector(connector).map_err(unusable)?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(unusable)?)
            .map_err(BoxError::from)
            .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
        Ok(Client::new(service, config.default_namespace))
    }

    /// Sends a request, and returns what is answered as soon as it begins, with the turn of the client.
    pub(super) async fn open(&self, request: http::Request<Vec<u8>>) -> Result<(Answer, u64), Failure> {
        let (client, turn) = self.client().await?;
        let response = match timeout(PATIENCE, client.send(request.map(Body::from))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                self.give_up(turn);
                return Err(Failure::Broken(chain(&error)));
            }
            // It may wait in one of the server's queues, which says nothing about others: only its own connection is closed.
            Err(_) => return Err(Failure::Away(silence())),
        };
        let (head, body) = response.into_parts();
        let mut answer = Answer { body, read: Vec::new(), taken: 0, searched: 0 };
        if head.status.is_success() {
            return Ok((answer, turn));
        }
        if head.status == http::StatusCode::UNAUTHORIZED {
            // A token that has expired; the file may have another by now.
            self.give_up(turn);
        }
        let text = answer.whole().await.unwrap_or_default();
        Err(failure(&head, &text))
    }

    /// Makes a request, again where the server asks for patience, and reads the whole answer.
    pub(super) async fn whole(&self, request: http::Request<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        let mut attempt = 1;
        loop {
            match self.open(request.clone()).await {
                Ok((mut answer, turn)) => {
                    let whole = answer.whole().await;
                    if let Err(Failure::Broken(_)) = &whole {
                        self.give_up(turn);
                    }
                    return whole;
                }
                Err(Failure::Throttled(_, wait) | Failure::Behind(_, wait)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(wait.mul_f64(spread())).await;
                }
                Err(failure) => return Err(failure),
            }
            attempt += 1;
        }
    }

    /// Makes a request and parses the answer.
    async fn get<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Result<T, Failure> {
        parse(&self.whole(request).await?)
    }
}

/// Parses an answer.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::Away(format!("the answer cannot be read: {error}")))
}

pub(super) fn invalid(doing: &str, error: &(dyn std::error::Error + 'static)) -> StoreError {
    StoreError::Invalid(format!("{doing}: {}", chain(error)))
}

/// By how much a wait is drawn out: thousands of nodes that were told the same do not come back in step.
pub(super) fn spread() -> f64 {
    rand::random_range(1.0..2.0)
}

fn silence() -> String {
    format!("no answer in {} s", PATIENCE.as_secs())
}

/// What an answer with an error means.
pub(super) fn failure(head: &http::response::Parts, text: &[u8]) -> Failure {
    // Proxies and the server's own throttling answer with text.
    let status: Status = serde_json::from_slice(text).unwrap_or_default();
    let message =
        if status.message.is_empty() { String::from_utf8_lossy(text).trim().to_owned() } else { status.message };
    let message = format!("{}: {message}", head.status);
    let header = head.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let asked = status.details.map_or(0, |details| details.retry_after_seconds);
    meaning(head.status.as_u16(), &message, header.unwrap_or_else(|| asked.into()))
}

/// What an error with this code means, after which the server wants to be left in peace for so many seconds, where not 0.
pub(super) fn meaning(code: u16, message: &str, wait: u64) -> Failure {
    let message: String = message.chars().take(500).collect();
    let pause = Duration::from_secs(wait).clamp(Duration::from_secs(1), MAX_WAIT);
    match (code, wait) {
        (404, _) => Failure::Missing,
        (409, _) => Failure::Conflict(message),
        (410, _) => Failure::Gone,
        // "Too large resource version", of a replica that lags (Kubernetes API concepts, "Unavailable resource versions").
        (504, 1..) => Failure::Behind(message, pause),
        (429, _) | (500..=599, 1..) => Failure::Throttled(message, pause),
        (401, _) => {
            Failure::Away(format!("{message} (is the service account's token, or the kubeconfig, still good?)"))
        }
        (403, _) => Failure::Forbidden(message),
        (400..=499, _) => Failure::Refused(message),
        _ => Failure::Away(message),
    }
}

/// The body of an answer, which may go on for ever.
pub(super) struct Answer {
    body: Body,
    read: Vec<u8>,
    /// how much of `read` has been handed out
    taken: usize,
    /// how far it was searched for the end of a line
    searched: usize,
}

impl Answer {
    /// The next line, without its end. None: there are no more whole ones. May be given up at any time without loss.
    pub(super) async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let rest = self.read.get(self.searched..).unwrap_or_default();
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + length;
                let line = self.read.get(self.taken..end).unwrap_or_default().to_vec();
                (self.taken, self.searched) = (end + 1, end + 1);
                return Ok(Some(line));
            }
            self.read.drain(..self.taken);
            (self.taken, self.searched) = (0, self.read.len());
            if self.read.len() > MAX_OBJECT {
                return Err(Failure::Away(format!("an object has more than {MAX_OBJECT} bytes")));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The next part, in bounded time. None: that was all.
    pub(super) async fn part(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        while self.read.is_empty() {
            if !timeout(PATIENCE, self.more()).await.unwrap_or_else(|_| Err(Failure::Away(silence())))? {
                return Ok(None);
            }
        }
        Ok(Some(std::mem::take(&mut self.read)))
    }

    async fn whole(&mut self) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        while let Some(part) = self.part().await? {
            whole.extend(part);
            if whole.len() > MAX_OBJECT {
                return Err(Failure::Away(format!("the answer has more than {MAX_OBJECT} bytes")));
            }
        }
        Ok(whole)
    }

    async fn more(&mut self) -> Result<bool, Failure> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.read.extend_from_slice(&data);
                }
                Ok(true)
            }
            Some(Err(error)) => Err(Failure::Broken(chain(&error))),
        }
    }
}
