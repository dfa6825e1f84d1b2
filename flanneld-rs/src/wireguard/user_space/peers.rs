//! Who is in the network: looked up by key, by the index that a session goes by, and by pod address.

use defguard_boringtun::noise::Tunn;
use defguard_boringtun::noise::rate_limiter::RateLimiter;
use defguard_boringtun::x25519;
use ipnetwork::IpNetwork;
use kernel::wireguard::{Found, PeerChange, PeerSettings, PublicKey, SecretKey};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Sessions have 24 bits of index for their peer, and 8 of their own.
const INDEX_BITS: u32 = 24;
/// Where a peer is that has never told: nothing is sent there.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// This node, as far as handshakes go.
pub(super) struct Identity {
    pub(super) private: x25519::StaticSecret,
    pub(super) public: x25519::PublicKey,
    /// for all peers together; a flood of handshakes costs those who send it a cookie each
    pub(super) limiter: Arc<RateLimiter>,
}

/// Handshake messages a second that are looked at without further proof. Each counts twice, here and in its tunnel.
const HANDSHAKES: u64 = 2000;

impl Identity {
    pub(super) fn new(private: &SecretKey) -> Self {
        let private = x25519::StaticSecret::from(*private.bytes());
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES));
        Identity { private, public, limiter }
    }
}

/// One peer. Both directions take its lock for a burst of packets.
pub(super) struct Peer {
    pub(super) index: u32,
    pub(super) key: PublicKey,
    settings: PeerSettings,
    session: Arc<Mutex<Session>>,
}

/// What changes with every packet.
pub(super) struct Session {
    pub(super) tunnel: Tunn,
    /// where the last authentic packet came from
    pub(super) endpoint: SocketAddr,
    /// since when handshakes go unanswered
    pub(super) unanswered: Option<Instant>,
}

impl Peer {
    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> Found {
        let session = self.session();
        Found {
            preshared_key: self.settings.preshared_key.clone(),
            endpoint: Some(session.endpoint),
            keepalive: self.settings.keepalive,
            allowed: self.settings.allowed.clone(),
            handshake: session.tunnel.time_since_last_handshake(),
        }
    }
}

/// All peers. A value: a change makes another, so that nobody waits for it.
#[derive(Clone, Default)]
pub(super) struct Peers {
    by_key: HashMap<PublicKey, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    /// first address of a network -> its last one, and whose it is; no two overlap
    by_address: BTreeMap<IpAddr, (IpAddr, Arc<Peer>)>,
    last_index: u32,
}

impl Peers {
    pub(super) fn by_key(&self, key: &[u8; 32]) -> Option<&Arc<Peer>> {
        self.by_key.get(&PublicKey(*key))
    }

    /// By the number that a message to us names its session with.
    pub(super) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> (u32::BITS - INDEX_BITS)))
    }

    /// The peer whose pods have this address.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let (_, (last, peer)) = self.by_address.range(..=address).next_back()?;
        (address <= *last).then_some(peer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_key.values()
    }

    pub(super) fn found(&self) -> BTreeMap<PublicKey, Found> {
        self.by_key.iter().map(|(key, peer)| (*key, peer.found())).collect()
    }

    /// Carries out changes, and returns the peers that are new.
    pub(super) fn change(&mut self, identity: &Identity, changes: &[PeerChange]) -> Vec<Arc<Peer>> {
        let mut newcomers = Vec::new();
        for change in changes {
            match change {
                PeerChange::Remove(key) => drop(self.remove(key)),
                PeerChange::Set(key, settings) => {
                    let before = self.remove(key);
                    let peer = match before.map(|before| before.with(settings)) {
                        Some(Ok(kept)) => kept,
                        Some(Err(endpoint)) => self.make(identity, *key, settings, endpoint),
                        None => self.make(identity, *key, settings, NOWHERE),
                    };
                    if peer.session().tunnel.time_since_last_handshake().is_none() {
                        newcomers.push(Arc::clone(&peer));
                    }
                    self.insert(peer);
                }
            }
        }
        newcomers
    }

    fn make(
        &mut self,
        identity: &Identity,
        key: PublicKey,
        settings: &PeerSettings,
        endpoint: SocketAddr,
    ) -> Arc<Peer> {
        // Not a number that was given away lately: packets for its last owner may be on their way.
        let mut index = self.last_index;
        loop {
            index = index.wrapping_add(1) & ((1 << INDEX_BITS) - 1);
            if !self.by_index.contains_key(&index) {
                break;
            }
        }
        self.last_index = index;
        let tunnel = Tunn::new(
            identity.private.clone(),
            x25519::PublicKey::from(key.0),
            settings.preshared_key.as_ref().map(|key| *key.bytes()),
            Some(settings.keepalive).filter(|seconds| *seconds > 0),
            index,
            Some(Arc::clone(&identity.limiter)),
        );
        let session = Session { tunnel, endpoint: settings.endpoint.unwrap_or(endpoint), unanswered: None };
        Arc::new(Peer { index, key, settings: settings.clone(), session: Arc::new(Mutex::new(session)) })
    }

    fn remove(&mut self, key: &PublicKey) -> Option<Arc<Peer>> {
        let peer = self.by_key.remove(key)?;
        self.by_index.remove(&peer.index);
        self.by_address.retain(|_, (_, owner)| !Arc::ptr_eq(owner, &peer));
        Some(peer)
    }

    fn insert(&mut self, peer: Arc<Peer>) {
        for network in &peer.settings.allowed {
            self.by_address.insert(network.network(), (last(network), Arc::clone(&peer)));
        }
        self.by_index.insert(peer.index, Arc::clone(&peer));
        self.by_key.insert(peer.key, peer);
    }
}

impl Peer {
    /// The same peer with other settings and its sessions, or its endpoint if they cannot be kept.
    fn with(&self, settings: &PeerSettings) -> Result<Arc<Self>, SocketAddr> {
        let mut session = self.session();
        if let Some(endpoint) = settings.endpoint {
            session.endpoint = endpoint;
        }
        let PeerSettings { preshared_key, keepalive, .. } = &self.settings;
        if (preshared_key, keepalive) != (&settings.preshared_key, &settings.keepalive) {
            return Err(session.endpoint);
        }
        let (settings, session) = (settings.clone(), Arc::clone(&self.session));
        Ok(Arc::new(Peer { index: self.index, key: self.key, settings, session }))
    }
}

fn last(network: &IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(network) => network.broadcast().into(),
        IpNetwork::V6(network) => network.broadcast().into(),
    }
}
