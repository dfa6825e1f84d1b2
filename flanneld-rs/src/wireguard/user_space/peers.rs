//! Who is in the network: looked up by key, by the index that a session goes by, and by pod address.

use super::lock;
use super::session::Session;
use defguard_boringtun::noise::rate_limiter::RateLimiter;
use defguard_boringtun::x25519;
use ipnetwork::IpNetwork;
use kernel::wireguard::{Found, PeerChange, PeerSettings, PublicKey, SecretKey};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

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
    /// for messages that were let in before
    pub(super) no_limiter: Arc<RateLimiter>,
}

/// Handshake messages a second that are looked at without further proof. Each counts twice, here and in its tunnel.
const HANDSHAKES: u64 = 2000;

impl Identity {
    pub(super) fn new(private: &SecretKey) -> Self {
        let private = x25519::StaticSecret::from(*private.bytes());
        let public = x25519::PublicKey::from(&private);
        let [limiter, no_limiter] = [HANDSHAKES, u64::MAX].map(|limit| Arc::new(RateLimiter::new(&public, limit)));
        Identity { private, public, limiter, no_limiter }
    }

    /// The index of a peer if no other has it: the same in each life of this process, so that what is sent in sessions of the
    /// last one tells by whom, and nothing that strangers could know. Of two peers with the same the second gets another, and
    /// which one is the second may change: then it hears of the new life when it begins to doubt, after 15 s.
    fn index(&self, peer: &PublicKey) -> u32 {
        let digest = Sha256::new().chain_update(self.private.as_bytes()).chain_update(peer.0).finalize();
        digest.iter().take(4).fold(0, |index, byte| index << 8 | u32::from(*byte)) >> (u32::BITS - INDEX_BITS)
    }
}

/// One peer. Both directions take its lock for a burst of packets.
pub(super) struct Peer {
    pub(super) index: u32,
    pub(super) key: PublicKey,
    allowed: Box<[IpNetwork]>,
    session: Arc<Mutex<Session>>,
}

impl Peer {
    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    /// The session, for who looks at it without the peer.
    pub(super) fn shared_session(&self) -> &Arc<Mutex<Session>> {
        &self.session
    }

    fn found(&self) -> Found {
        let session = self.session();
        Found {
            preshared_key: session.preshared_key().cloned(),
            endpoint: Some(session.endpoint),
            keepalive: session.keepalive(),
            allowed: self.allowed.iter().copied().collect(),
            handshake: session.handshake(),
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

    pub(super) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        self.by_key.keys().copied()
    }

    /// How a peer is.
    pub(super) fn tell(&self, key: &PublicKey) -> Option<Found> {
        Some(self.by_key.get(key)?.found())
    }

    /// Carries out changes, and returns their number, and the peers whose sessions must be kept alive, and have none.
    pub(super) fn change(
        &mut self,
        identity: &Identity,
        changes: impl Iterator<Item = PeerChange>,
    ) -> (usize, Vec<Arc<Peer>>) {
        let (mut number, mut newcomers) = (0, Vec::new());
        for change in changes {
            number += 1;
            match change {
                PeerChange::Remove(key) => drop(self.remove(&key)),
                PeerChange::Set(key, settings) => {
                    let peer = Arc::new(match self.remove(&key) {
                        // What is known of it holds, whatever it is sent from now on.
                        Some(before) => Peer {
                            index: before.index,
                            key,
                            allowed: settings.allowed.iter().copied().collect(),
                            session: Arc::clone(&before.session),
                        },
                        None => self.make(identity, key, &settings),
                    });
                    let mut session = peer.session();
                    session.set(&settings);
                    if session.keepalive() > 0 && session.sleeps() {
                        newcomers.push(Arc::clone(&peer));
                    }
                    drop(session);
                    self.insert(peer);
                }
            }
        }
        (number, newcomers)
    }

    fn make(&self, identity: &Identity, key: PublicKey, settings: &PeerSettings) -> Peer {
        let mut index = identity.index(&key);
        while self.by_index.contains_key(&index) {
            index = (index + 1) & ((1 << INDEX_BITS) - 1);
        }
        let session = Arc::new(Mutex::new(Session::new(NOWHERE)));
        Peer { index, key, allowed: settings.allowed.iter().copied().collect(), session }
    }

    fn remove(&mut self, key: &PublicKey) -> Option<Arc<Peer>> {
        let peer = self.by_key.remove(key)?;
        self.by_index.remove(&peer.index);
        for network in &peer.allowed {
            // Unless it has gone over to another.
            if self.by_address.get(&network.network()).is_some_and(|(_, owner)| Arc::ptr_eq(owner, &peer)) {
                self.by_address.remove(&network.network());
            }
        }
        Some(peer)
    }

    fn insert(&mut self, peer: Arc<Peer>) {
        for network in &peer.allowed {
            self.by_address.insert(network.network(), (last(network), Arc::clone(&peer)));
        }
        self.by_index.insert(peer.index, Arc::clone(&peer));
        self.by_key.insert(peer.key, peer);
    }
}

fn last(network: &IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(network) => network.broadcast().into(),
        IpNetwork::V6(network) => network.broadcast().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(number: u32) -> PeerChange {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let settings = PeerSettings { preshared_key: None, endpoint: None, keepalive: 0, allowed: [].into() };
        PeerChange::Set(PublicKey(key), settings)
    }

    fn peers(identity: &Identity, numbers: impl Iterator<Item = u32>) -> Peers {
        let mut peers = Peers::default();
        peers.change(identity, numbers.map(set));
        peers
    }

    /// So many that some hash to the same.
    #[test]
    fn each_has_an_index_of_its_own_and_the_same_in_the_next_life() {
        const PEERS: u32 = 20_000;
        let identity = Identity::new(&SecretKey::private([1; 32]));
        let (one, next) = (peers(&identity, 0..PEERS), peers(&identity, (0..PEERS).rev()));
        let (mut others, mut strangers) = (0, 0);
        let stranger = peers(&Identity::new(&SecretKey::private([2; 32])), 0..PEERS);
        for peer in one.iter() {
            let receiver = peer.index << (u32::BITS - INDEX_BITS) | 7;
            let found = |peers: &Peers| peers.by_receiver(receiver).is_some_and(|found| found.key == peer.key);
            assert!(found(&one));
            others += usize::from(!found(&next));
            strangers += usize::from(found(&stranger));
        }
        // Who comes second gets another.
        assert!((1..200).contains(&others), "{others} indices depend on the order");
        assert!(strangers < 10, "{strangers} indices depend on the peer alone");
    }
}
