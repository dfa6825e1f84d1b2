//! Changes of the network configuration while the daemon runs: whoever changes it, in the file or in the store, wakes a look at
//! it; what it says decides. What cannot change, or makes no sense, leaves everything as it is, and is told.

use crate::config_file::ConfigFile;
use crate::health::{Condition, Health};
use crate::last_known::LastKnown;
use crate::lease::{Lease, LeaseTable};
use crate::network_config::NetworkConfig;
use crate::store::{LeaseStore, Store, StoreError};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
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
    /// what the present offer was refused on; none: it is in force
    refused_on: Option<(Option<Lease>, Option<Weak<LeaseTable>>)>,
    health: Health,
}

/// What it depends on whether a node can go over to another configuration.
#[derive(Clone, Copy, Debug)]
pub struct Grounds<'a> {
    /// this node's lease
    pub own: Option<&'a Lease>,
    /// the subnet of a lease follows from the configuration, and is not given by the cluster
    pub has_pools: bool,
    /// all leases
    pub leases: Option<&'a Arc<LeaseTable>>,
}

impl Grounds<'_> {
    /// Whether they are those of the last time. Leases that did not change are the same object.
    fn are(&self, (own, leases): &(Option<Lease>, Option<Weak<LeaseTable>>)) -> bool {
        let now = self.leases.map(Arc::as_ptr);
        self.own == own.as_ref() && now == leases.as_ref().map(Weak::as_ptr)
    }

    /// The addresses by which nodes are reached.
    fn nodes(&self) -> Vec<IpAddr> {
        let leases = self.own.into_iter().chain(self.leases.into_iter().flat_map(|leases| leases.iter()));
        leases.flat_map(|lease| lease.announcement.endpoints.iter()).map(|(_, way)| way.public_ip).collect()
    }
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
        let in_force = watch::Sender::new(at_start);
        (Reload { offered, in_force, refused_on: None, health }, Reader { source, offers })
    }

    /// What the daemon goes by.
    pub fn in_force(&self) -> watch::Receiver<Arc<Configuration>> {
        self.in_force.subscribe()
    }

    /// Waits until something else is offered than [`Self::take`] has seen.
    pub async fn offered(&mut self) {
        match self.offered.changed().await {
            // It is for `take` to have seen it.
            Ok(()) => self.offered.mark_changed(),
            Err(_) => std::future::pending().await,
        }
    }

    /// What is offered, if the node can go over to it; it then has. Whatever keeps it from that is a note of the node's health.
    /// What was refused once is looked at again when its grounds are others.
    pub fn take(&mut self, grounds: Grounds<'_>) -> Option<NetworkConfig> {
        let is_new = self.offered.has_changed().unwrap_or(false);
        if !is_new && self.refused_on.as_ref().is_none_or(|before| grounds.are(before)) {
            return None;
        }
        let own = grounds.own.filter(|_| grounds.has_pools).map(|own| &own.subnets);
        let offer = self.offered.borrow_and_update().clone();
        let now = self.in_force.borrow().clone();
        let change = offer.and_then(|offer| {
            let names = match offer.config == now.config {
                true => Vec::new(),
                false => now.config.change_to(&offer.config, own, &grounds.nodes())?,
            };
            Ok((offer, names))
        });
        self.refused_on = None;
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
                self.refused_on = Some((grounds.own.cloned(), grounds.leases.map(Arc::downgrade)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_offer_is_looked_at_once_for_each_change_of_its_grounds() {
        let configuration = |text: &str| Configuration { config: NetworkConfig::parse(text).unwrap(), text: None };
        let now = configuration(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#);
        let grown = configuration(r#"{"Network": "10.4.0.0/15", "Backend": {"Type": "host-gw"}}"#);
        let lease = |number: u8, public: &str| {
            let value = format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
            Lease::parse(&format!("10.5.{number}.0-24"), value.as_bytes()).unwrap()
        };
        let table =
            |public: &str| Arc::new([lease(1, "192.0.2.1"), lease(2, public)].into_iter().collect::<LeaseTable>());
        let own = lease(1, "192.0.2.1");
        let [inside, still, outside] = ["10.4.0.2", "10.4.0.3", "192.0.2.2"].map(table);
        let health = Health::new();
        let source = Source::File(ConfigFile::at("/proc/no-such"));
        let (mut reload, reader) = Reload::new(source, now, health.clone());
        let grounds = |leases| Grounds { own: Some(&own), has_pools: true, leases: Some(leases) };
        assert_eq!(reload.take(grounds(&inside)), None);
        // The network would swallow a node.
        drop(reader.offers.send_replace(Ok(Arc::new(grown.clone()))));
        reload.offered().await;
        let mut take = |leases| reload.take(grounds(leases));
        assert_eq!(take(&inside), None);
        assert!(health.notes().contains(NOTE), "{}", health.notes());
        health.note(NOTE, String::new());
        assert_eq!(take(&inside), None);
        assert_eq!(health.notes(), "", "looked at again for nothing");
        assert_eq!(take(&still), None);
        assert!(health.notes().contains(NOTE), "{}", health.notes());
        assert_eq!(take(&outside), Some(grown.config));
        assert_eq!((health.notes().as_str(), take(&inside)), ("", None));
    }
}
