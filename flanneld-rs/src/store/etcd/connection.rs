//! The connection to etcd: one endpoint at a time, the next one when it fails.

use super::EtcdOptions;
use crate::store::StoreError;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long one endpoint may take to answer one request.
pub(super) const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// How long one endpoint may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// A silent connection is probed this often (etcd allows every 5 s), and is dead when the probe is not answered in time.
const PROBE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Where Debian keeps the certificate authorities that the machine trusts.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A client of the endpoint whose turn it is.
///
/// Not etcd-client's own balancing: that goes on giving requests to endpoints that are down, and flannel's default names two
/// ports of which only one ever answers. A new connection also reads the certificates again, which may have been renewed.
#[derive(Debug)]
pub(super) struct Connection {
    options: EtcdOptions,
    state: Mutex<State>,
    /// how often the node has moved
    moves: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// counts the connections given up
    turn: usize,
    client: Option<Client>,
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
            tls(&options, endpoint)?;
        }
        Ok(Self { options, state: Mutex::default(), moves: watch::Sender::default() })
    }

    /// All endpoints, for messages.
    pub(super) fn name(&self) -> String {
        format!("etcd at {}", self.options.endpoints.join(", "))
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client, and the number of its turn for [`Self::give_up`].
    pub(super) async fn client(&self) -> Result<(Client, usize), StoreError> {
        let turn = {
            let state = self.state();
            if let Some(client) = &state.client {
                return Ok((client.clone(), state.turn));
            }
            state.turn
        };
        let endpoint = self.options.endpoints.get(turn % self.options.endpoints.len()).cloned().unwrap_or_default();
        let mut connect = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(CONNECT_PATIENCE)
            .with_keep_alive(PROBE.0, PROBE.1)
            .with_auto_token_refresh(true);
        if let Some(tls) = tls(&self.options, &endpoint)? {
            connect = connect.with_tls(tls);
        }
        if let Some((name, password)) = &self.options.user {
            connect = connect.with_user(name, password);
        }
        // Without a user nothing is sent yet; with one, the password is.
        let connected = tokio::time::timeout(REQUEST_PATIENCE, Client::connect([&endpoint], Some(connect))).await;
        let outcome = connected.unwrap_or_else(|_| Err(Error::EndpointError(silence())));
        match outcome {
            Ok(client) => {
                let mut state = self.state();
                if state.turn == turn {
                    state.client = Some(client.clone());
                }
                Ok((client, turn))
            }
            Err(error) => {
                self.give_up(turn);
                Err(sort(error).error(format!("connecting to etcd at {endpoint}")))
            }
        }
    }

    /// This connection failed: the next call makes a new one, to the next endpoint. Others may have said so before.
    pub(super) fn give_up(&self, turn: usize) {
        let mut state = self.state();
        if state.turn == turn {
            *state = State { turn: turn.wrapping_add(1), client: None };
        }
    }

    /// The node has other addresses: connections from the old ones never hear a thing again, and it would take [`PROBE`] to
    /// notice. The next call makes a new one, to the same endpoint.
    pub(super) fn moved(&self) {
        let mut state = self.state();
        *state = State { turn: state.turn.wrapping_add(self.options.endpoints.len()), client: None };
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Tells of moves from now on.
    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Carries out a request, at each endpoint in turn until one answers. A request may thus be carried out twice: it must be
    /// one for which that is the same as once.
    pub(super) async fn call<T, F>(&self, doing: &str, request: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = StoreError::Unavailable(format!("{doing}: not tried"));
        let mut moves = self.moves();
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
                Ok(()) = moves.changed() => {
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
        Error::TransportError(error) => Failure::Refused(chain(&error.to_string(), std::error::Error::source(&error))),
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

/// The TLS settings for an endpoint. None: it is reached without TLS.
fn tls(options: &EtcdOptions, endpoint: &str) -> Result<Option<TlsOptions>, StoreError> {
    let read = |flag: &str, path: &Path| {
        fs::read(path).map_err(|error| StoreError::Invalid(format!("{flag}: reading {}: {error}", path.display())))
    };
    let files = [&options.cafile, &options.certfile, &options.keyfile];
    if !endpoint.starts_with("https://") {
        return match files.into_iter().flatten().next() {
            // To go on without TLS would send secrets in the clear: flannel did.
            Some(file) => Err(StoreError::Invalid(format!(
                "etcd endpoint {endpoint} is not https, but {} is given for TLS: correct --etcd-endpoints",
                file.display()
            ))),
            None => Ok(None),
        };
    }
    let authorities = match &options.cafile {
        Some(path) => read("--etcd-cafile", path)?,
        None => fs::read(SYSTEM_AUTHORITIES).map_err(|error| {
            StoreError::Invalid(format!(
                "etcd endpoint {endpoint}: neither --etcd-cafile nor {SYSTEM_AUTHORITIES} ({error}) says whom to trust"
            ))
        })?,
    };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authorities));
    if let (Some(certificate), Some(key)) = (&options.certfile, &options.keyfile) {
        let (certificate, key) = (read("--etcd-certfile", certificate)?, read("--etcd-keyfile", key)?);
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(Some(tls))
}
