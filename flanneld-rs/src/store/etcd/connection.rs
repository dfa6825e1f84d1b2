//! The connection to etcd: one endpoint at a time, the next one when it fails.

use super::EtcdOptions;
use super::certificates::{self, Version};
use crate::store::StoreError;
use etcd_client::{Client, ConnectOptions, Error};
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;

/// How long one endpoint may take to answer one request.
pub(super) const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// How long one endpoint may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// A silent connection is probed this often (etcd allows every 5 s), and is dead when the probe is not answered in time.
const PROBE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How often the files of a connection that goes on are looked at.
const FILES_LOOK: Duration = Duration::from_secs(5);

/// A client of the endpoint whose turn it is.
///
/// Not etcd-client's own balancing: that goes on giving requests to endpoints that are down, and flannel's default names two
/// ports of which only one ever answers. Certificates and passwords are read for each connection, and a connection ends with
/// the files that it was made with: rotation needs no restart.
#[derive(Debug)]
pub(super) struct Connection {
    options: EtcdOptions,
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    /// counts the connections given up
    turn: usize,
    /// how often the node has moved
    moves: u64,
    client: Option<(Client, Vec<Version>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "connection {}", self.turn)
    }
}

impl Connection {
    /// Checks the options; contacts nobody.
    pub(super) fn new(mut options: EtcdOptions) -> Result<Self, StoreError> {
        options.endpoints.retain(|endpoint| !endpoint.trim().is_empty());
        if options.endpoints.is_empty() {
            return Err(StoreError::Invalid("no etcd endpoint is given: set --etcd-endpoints".into()));
        }
        if options.certfile.is_some() != options.keyfile.is_some() {
            return Err(StoreError::Invalid(
                "--etcd-certfile and --etcd-keyfile belong together: only one is given".into(),
            ));
        }
        for endpoint in &options.endpoints {
            if endpoint.split_once("://").is_some_and(|(scheme, _)| !matches!(scheme, "http" | "https")) {
                return Err(StoreError::Invalid(format!(
                    "etcd endpoint {endpoint}: must begin with http:// or https://"
                )));
            }
            certificates::tls(&options, endpoint)?;
        }
        if let Some(user) = &options.user {
            user.password.read()?;
        }
        Ok(Self { options, state: watch::Sender::default() })
    }

    /// All endpoints, for messages.
    pub(super) fn name(&self) -> String {
        format!("etcd at {}", self.options.endpoints.join(", "))
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.options
    }

    /// A client, and the number of its turn for [`Self::give_up`] and [`Self::ended`].
    pub(super) async fn client(&self) -> Result<(Client, usize), StoreError> {
        let files = certificates::versions(&self.options);
        let (turn, present) = {
            let state = self.state.borrow();
            (state.turn, state.client.clone())
        };
        match present {
            None => self.connect(turn, files).await,
            Some((client, read)) if read == files => Ok((client, turn)),
            Some((client, _)) => {
                // To the same endpoint; the former connection serves whoever has begun something on it.
                let next = turn.wrapping_add(self.options.endpoints.len());
                match self.connect(next, files).await {
                    Ok(renewed) => {
                        tracing::info!(
                            "{}: connected anew, since certificates, keys or the password were replaced",
                            self.name()
                        );
                        Ok(renewed)
                    }
                    // In the middle of a rotation, perhaps: certificate and key are not of one pair yet.
                    Err(error) => {
                        tracing::warn!("{error}; the connection that was made with the former files goes on");
                        Ok((client, turn))
                    }
                }
            }
        }
    }

    /// Makes the connection of this turn, and makes it everybody's.
    async fn connect(&self, turn: usize, files: Vec<Version>) -> Result<(Client, usize), StoreError> {
        let endpoint = self.options.endpoints.get(turn % self.options.endpoints.len()).cloned().unwrap_or_default();
        let mut connect = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(CONNECT_PATIENCE)
            .with_keep_alive(PROBE.0, PROBE.1)
            .with_auto_token_refresh(true);
        // They were fine when the daemon started.
        let tls =
            certificates::tls(&self.options, &endpoint).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        if let Some(tls) = tls {
            connect = connect.with_tls(tls);
        }
        if let Some(user) = &self.options.user {
            let password = user.password.read().map_err(|error| StoreError::Unavailable(error.to_string()))?;
            connect = connect.with_user(&user.name, password);
        }
        // Without a user nothing is sent yet; with one, the password is.
        let connected = tokio::time::timeout(REQUEST_PATIENCE, Client::connect([&endpoint], Some(connect))).await;
        let outcome = connected.unwrap_or_else(|_| Err(Error::EndpointError(silence())));
        match outcome {
            Ok(client) => {
                self.state.send_if_modified(|state| {
                    let is_later = turn > state.turn;
                    if turn >= state.turn {
                        (state.turn, state.client) = (turn, Some((client.clone(), files)));
                    }
                    is_later
                });
                Ok((client, turn))
            }
            Err(Error::TransportError(error)) => {
                self.give_up(turn);
                let why = chain(&error.to_string(), std::error::Error::source(&error));
                Err(StoreError::Unavailable(format!(
                    "connecting to etcd at {endpoint}: {why} (do --etcd-certfile and --etcd-keyfile belong together?)"
                )))
            }
            Err(error) => {
                self.give_up(turn);
                Err(sort(error).error(format!("connecting to etcd at {endpoint}")))
            }
        }
    }

    /// This connection failed: the next call makes a new one, to the next endpoint. Others may have said so before.
    pub(super) fn give_up(&self, turn: usize) {
        self.state.send_if_modified(|state| {
            let is_present = state.turn == turn;
            if is_present {
                (state.turn, state.client) = (turn.wrapping_add(1), None);
            }
            is_present
        });
    }

    /// The node has other addresses: connections from the old ones never hear a thing again, and it would take [`PROBE`] to
    /// notice. The next call makes a new one, to the same endpoint.
    pub(super) fn moved(&self) {
        self.state.send_modify(|state| {
            state.turn = state.turn.wrapping_add(self.options.endpoints.len());
            state.moves += 1;
            state.client = None;
        });
    }

    /// Returns when the connection of this turn is no longer the present one: it was given up, the node has moved, or its
    /// certificates were replaced.
    pub(super) async fn ended(&self, turn: usize) {
        let mut states = self.state.subscribe();
        let mut seen = states.borrow().client.as_ref().map(|(_, files)| files.clone()).unwrap_or_default();
        loop {
            tokio::select! {
                _ = states.wait_for(|state| state.turn != turn) => return,
                () = tokio::time::sleep(FILES_LOOK), if !seen.is_empty() => {}
            }
            let files = certificates::versions(&self.options);
            // Once for each change, so that files that are of no use are not complained about for ever.
            if files != seen {
                seen = files;
                drop(self.client().await);
            }
        }
    }

    /// Carries out a request, at each endpoint in turn until one answers. A request may thus be carried out twice: it must be
    /// one for which that is the same as once.
    pub(super) async fn call<T, F>(&self, doing: &str, request: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = StoreError::Unavailable(format!("{doing}: not tried"));
        let mut states = self.state.subscribe();
        let moves = states.borrow().moves;
        for _ in &self.options.endpoints {
            let (client, turn) = match self.client().await {
                Ok(connected) => connected,
                Err(StoreError::Unavailable(text)) => {
                    last = StoreError::Unavailable(text);
                    continue;
                }
                Err(other) => return Err(other),
            };
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(REQUEST_PATIENCE, request(client)) => outcome,
                Ok(_) = states.wait_for(|state| state.moves != moves) => {
                    last = StoreError::Unavailable(format!("{doing}: the node's address has changed meanwhile"));
                    continue;
                }
            };
            let failure = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => sort(error),
                Err(_) => Failure::Connection(silence()),
            };
            let is_final = matches!(failure, Failure::Refused(_));
            last = failure.error(format!("{doing} at {}", self.name()));
            if is_final {
                return Err(last);
            }
            self.give_up(turn);
        }
        Err(last)
    }
}

fn silence() -> String {
    format!("no answer in {} s", REQUEST_PATIENCE.as_secs())
}

/// What kind of error a request ended in.
pub(super) enum Failure {
    /// another connection may do better
    Connection(String),
    /// the server understood, and said no
    Refused(String),
}

impl Failure {
    pub(super) fn error(self, doing: String) -> StoreError {
        match self {
            Self::Connection(why) => {
                StoreError::Unavailable(format!("{doing}: {why} (is etcd running there? see --etcd-endpoints)"))
            }
            Self::Refused(why) => {
                StoreError::Invalid(format!("{doing}: {why} (check etcd's users and roles, and the --etcd-* options)"))
            }
        }
    }
}

/// Whether another attempt can help.
pub(super) fn sort(error: Error) -> Failure {
    // Numbers of gRPC's status codes (grpc/doc/statuscodes.md); the type that names them is not etcd-client's to give.
    const REFUSALS: [i32; 4] = [3, 7, 9, 12]; // INVALID_ARGUMENT PERMISSION_DENIED FAILED_PRECONDITION UNIMPLEMENTED
    match error {
        Error::GRpcStatus(status) => {
            let text = chain(status.message(), std::error::Error::source(&status));
            if REFUSALS.contains(&(status.code() as i32)) { Failure::Refused(text) } else { Failure::Connection(text) }
        }
        Error::InvalidArgs(text) => Failure::Refused(text),
        Error::InvalidUri(error) => Failure::Refused(format!("malformed URL: {error}")),
        other => Failure::Connection(other.to_string()),
    }
}

/// An error with its causes: the first only says "transport error".
fn chain(first: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = first.to_owned();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
