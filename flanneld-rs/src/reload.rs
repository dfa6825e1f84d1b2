//! Changes of the network configuration while the daemon runs: whoever changes it, in the file or in the store, wakes a look at
//! it; what it says decides. What cannot change, or makes no sense, leaves everything as it is, and is told.

use crate::config_file::ConfigFile;
use crate::health::{Condition, Health};
use crate::last_known::LastKnown;
use crate::lease::Lease;
use crate::network_config::NetworkConfig;
use crate::store::{LeaseStore, Store, StoreError};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::sleep;

/// What follows the first sign of a change within this time belongs to it: a file is emptied before it is written.
const SETTLE: Duration = Duration::from_millis(100);
/// Until the next look after one that found nothing to read.
const RETRY: Duration = Duration::from_secs(5);
/// The same at the start, when pods wait for it.
const START_RETRY: Duration = Duration::from_secs(1);
/// What people are told under.
const NOTE: &str = "network configuration";

/// A configuration that the daemon goes by, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// what it says
    pub config: NetworkConfig,
    /// its text, if it is the store's; none: it is of a file of this node's own
    pub text: Option<String>,
}

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// a file of this node's own
    File(ConfigFile),
    /// the lease store
    Store(Arc<Store>),
}

impl Source {
    /// The configuration as it is now.
    ///
    /// # Errors
    /// `Unavailable` while there is none, `Invalid` if it makes no sense.
    pub async fn read(&self) -> Result<Configuration, StoreError> {
        let (text, is_stored) = match self {
            Source::File(file) => (file.read().await?, false),
            Source::Store(store) => (store.network_config().await?, true),
        };
        let place = || match self {
            Source::File(file) => file.to_string(),
            Source::Store(_) => "the lease store".into(),
        };
        let parsed = NetworkConfig::parse(&text);
        let config = parsed.map_err(|error| StoreError::Invalid(format!("{error} (in {})", place())))?;
        Ok(Configuration { config, text: is_stored.then_some(text) })
    }

    /// The configuration at the start of the daemon: from the store as soon as it is there; while that does not answer or
    /// refuses to, or holds none that makes sense, the one of the last start.
    ///
    /// # Errors
    /// What waiting does not mend, in one line.
    pub async fn at_start(&self, last: Option<&LastKnown>, health: &Health) -> Result<Configuration, String> {
        loop {
            let error = match self.read().await {
                Ok(configuration) => return Ok(configuration),
                Err(error) => error,
            };
            let Source::Store(_) = self else { return Err(error.to_string()) };
            let known = last.and_then(|last| last.config.clone());
            if let Some((config, text)) = known.and_then(|text| Some((NetworkConfig::parse(&text).ok()?, text))) {
                tracing::warn!("{error}; going on with the {NOTE} of the last start");
                return Ok(Configuration { config, text: Some(text) });
            }
            let StoreError::Unavailable(reason) = error else { return Err(error.to_string()) };
            health.set(Condition::Lease, Err(format!("waiting for the {NOTE}: {reason}")));
            health.beat();
            sleep(START_RETRY).await;
        }
    }

    async fn follow(&self, wake: watch::Sender<()>) {
        match self {
            Source::File(file) => file.clone().follow(wake).await,
            Source::Store(store) => store.follow_config(wake).await,
        }
    }
}

/// What was read last: a configuration, or why there is none.
type Offer = Result<Arc<Configuration>, String>;

/// The configuration in force, and what it is to be instead.
#[derive(Debug)]
pub struct Reload {
    offered: watch::Receiver<Offer>,
    in_force: watch::Sender<Arc<Configuration>>,
    health: Health,
}

/// The other end of a [`Reload`].
#[derive(Debug)]
pub struct Reader {
    source: Source,
    offers: watch::Sender<Offer>,
}

impl Reload {
    /// With what was read at the start; the reader is to be [run](Reader::run).
    pub fn new(source: Source, at_start: Configuration, health: Health) -> (Self, Reader) {
        let at_start = Arc::new(at_start);
        let (offers, offered) = watch::channel(Ok(at_start.clone()));
        (Reload { offered, in_force: watch::Sender::new(at_start), health }, Reader { source, offers })
    }

    /// What the daemon goes by.
    pub fn in_force(&self) -> watch::Receiver<Arc<Configuration>> {
        self.in_force.subscribe()
    }

    /// Waits until something else is offered than [`Self::take`] has seen.
    pub async fn offered(&mut self) {
        if self.offered.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is offered, if a node with the lease `own` can go over to it among nodes that are reached by `nodes`; it then has.
    /// Whatever keeps it from that is a note of the node's health.
    pub fn take(&mut self, own: Option<&Lease>, nodes: impl FnOnce() -> Vec<IpAddr>) -> Option<NetworkConfig> {
        let offer = self.offered.borrow_and_update().clone();
        let now = self.in_force.borrow().clone();
        let change = offer.and_then(|offer| {
            let names = match offer.config == now.config {
                true => Vec::new(),
                false => now.config.change_to(&offer.config, own.map(|own| &own.subnets), &nodes())?,
            };
            Ok((offer, names))
        });
        match change {
            Ok((offer, names)) => {
                self.health.note(NOTE, String::new());
                let differs = offer.config != now.config;
                if differs {
                    tracing::info!("{NOTE} has changed: {}", names.join(", "));
                }
                // The same in other words is remembered as it is written.
                if *offer != *now {
                    self.in_force.send_replace(offer.clone());
                }
                differs.then(|| offer.config.clone())
            }
            Err(why) => {
                self.health.note(NOTE, format!("not taken over, the former one stays in force: {why}"));
                None
            }
        }
    }
}

impl Reader {
    /// Offers every change, until it is dropped. SIGHUP has it look again, too.
    pub async fn run(self, hangups: &mut Signal) {
        let (wake, mut woken) = watch::channel(());
        let mut follow = std::pin::pin!(self.source.follow(wake));
        let mut retry = false;
        loop {
            tokio::select! {
                () = &mut follow => {}
                Ok(()) = woken.changed() => {}
                Some(()) = hangups.recv() => tracing::info!("SIGHUP: looking at the {NOTE} again"),
                () = sleep(RETRY), if retry => {}
            }
            // The following goes on meanwhile, and the sign that comes next is for the next look.
            tokio::select! {
                () = &mut follow => {}
                () = sleep(SETTLE) => {}
            }
            woken.mark_unchanged();
            let read = self.source.read().await;
            retry = matches!(read, Err(StoreError::Unavailable(_)));
            let offer = read.map(Arc::new).map_err(|error| error.to_string());
            self.offers.send_if_modified(|present| {
                let changed = *present != offer;
                if changed {
                    *present = offer;
                }
                changed
            });
        }
    }
}
