//! WireGuard tunnels as values, and the kernel's own implementation of them, spoken to over generic netlink
//! (linux/wireguard.h).

mod key;
mod socket;
mod wire;

use crate::netlink::refused;
use crate::netlink::socket::{NLM_F_DUMP, Refusal, Socket};
use crate::{Error, Overlay, Result};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

pub use key::{BadKey, PublicKey, SecretKey};
pub use socket::TunnelSocket;

/// How a tunnel device must be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// this node's identity
    pub private_key: SecretKey,
    /// its public part
    pub public_key: PublicKey,
    /// UDP port that is listened on
    pub port: u16,
    /// who else is in the network. No address is allowed to two of them.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// Another node, without what is sent to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// a secret that both ends know besides their keys
    pub preshared_key: Option<SecretKey>,
    /// where it is reached first; a peer that moves is followed
    pub endpoint: SocketAddr,
    /// seconds after which silence is broken; 0: never
    pub keepalive: u16,
}

/// The far end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// who it is
    pub remote: Remote,
    /// what is sent to it, and what it may send from
    pub allowed: BTreeSet<IpNetwork>,
}

/// The peers of a device, as an overlay has them.
pub fn peers_of(overlay: &Overlay, device: &str) -> BTreeMap<PublicKey, Peer> {
    let peers = overlay.peers.iter().filter(|((name, _), _)| name == device);
    let mut peers: BTreeMap<_, _> =
        peers.map(|((_, key), remote)| (*key, Peer { remote: remote.clone(), allowed: BTreeSet::new() })).collect();
    for ((_, network), key) in overlay.allowed.iter().filter(|((name, _), _)| name == device) {
        if let Some(peer) = peers.get_mut(key) {
            peer.allowed.insert(*network);
        }
    }
    peers
}

/// A peer as it is, and what is known of its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// a secret that both ends know besides their keys
    pub preshared_key: Option<SecretKey>,
    /// where it was last heard from, or is expected
    pub endpoint: Option<SocketAddr>,
    /// seconds after which silence is broken; 0: never
    pub keepalive: u16,
    /// what is sent to it, and what it may send from
    pub allowed: BTreeSet<IpNetwork>,
    /// time since the last handshake
    pub handshake: Option<Duration>,
}

/// One step from the peers that there are to those that should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// forget a peer
    Remove(PublicKey),
    /// make a peer, or bring the settings of one up to date without ending its sessions
    Set(PublicKey, PeerSettings),
}

/// What is to be set of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// the pre-shared key
    pub preshared_key: Option<SecretKey>,
    /// where it is; None leaves it where it was last heard from
    pub endpoint: Option<SocketAddr>,
    /// seconds after which silence is broken; 0: never
    pub keepalive: u16,
    /// all of what is sent to it
    pub allowed: BTreeSet<IpNetwork>,
}

/// After so long without a handshake no session is left (REJECT_AFTER_TIME in the WireGuard paper).
pub const SESSION_LIFE: Duration = Duration::from_secs(180);

/// The steps to `wanted` from peers that are `known`, of each of which `found` tells: removals first, so that addresses are free
/// when they get a new owner. A peer that was heard from elsewhere than announced is left there as long as a session with it
/// lives; `moved` are peers whose announcement has changed since they were last set.
pub fn peer_changes(
    known: impl Iterator<Item = PublicKey>,
    found: impl Fn(&PublicKey) -> Option<Found>,
    wanted: &BTreeMap<PublicKey, Peer>,
    moved: &BTreeSet<PublicKey>,
) -> impl Iterator<Item = PeerChange> {
    let removals = known.filter(|key| !wanted.contains_key(key)).map(PeerChange::Remove);
    let settings = move |(key, peer): (&PublicKey, &Peer)| {
        Some(PeerChange::Set(*key, new_settings(found(key).as_ref(), peer, moved.contains(key))?))
    };
    removals.chain(wanted.iter().filter_map(settings))
}

/// What is to be set of a peer. None: all is as it should be.
fn new_settings(found: Option<&Found>, wanted: &Peer, moved: bool) -> Option<PeerSettings> {
    let Peer { remote, allowed } = wanted;
    let lives = found.is_some_and(|found| found.handshake.is_some_and(|age| age < SESSION_LIFE));
    let elsewhere = found.is_none_or(|found| found.endpoint != Some(remote.endpoint));
    let endpoint = (elsewhere && (!lives || moved)).then_some(remote.endpoint);
    let same = found.is_some_and(|found| {
        (&found.preshared_key, found.keepalive, &found.allowed) == (&remote.preshared_key, remote.keepalive, allowed)
    });
    let Remote { preshared_key, keepalive, .. } = remote;
    (!same || endpoint.is_some()).then(|| PeerSettings {
        preshared_key: preshared_key.clone(),
        endpoint,
        keepalive: *keepalive,
        allowed: allowed.clone(),
    })
}

/// Where peers say that they are.
pub fn announced(peers: &BTreeMap<PublicKey, Peer>) -> BTreeMap<PublicKey, SocketAddr> {
    peers.iter().map(|(key, peer)| (*key, peer.remote.endpoint)).collect()
}

/// The peers that announced to be elsewhere before.
pub fn moved(before: &BTreeMap<PublicKey, SocketAddr>, now: &BTreeMap<PublicKey, Peer>) -> BTreeSet<PublicKey> {
    let changed = |(key, peer): &(&PublicKey, &Peer)| before.get(key).is_some_and(|at| *at != peer.remote.endpoint);
    now.iter().filter(changed).map(|(key, _)| *key).collect()
}

/// A device of the kernel's WireGuard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// the public part of its identity, once it has one
    pub public_key: Option<PublicKey>,
    /// UDP port that it listens on; 0: none yet
    pub port: u16,
    /// its peers
    pub peers: BTreeMap<PublicKey, Found>,
}

/// A connection to the kernel's WireGuard, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct WireGuard {
    socket: Socket,
    family: u16,
}

/// Peers per message: their addresses and keys must fit in the 64 KiB of an attribute.
const PEERS_PER_MESSAGE: usize = 64;

impl WireGuard {
    /// Connects. None if this kernel has no WireGuard; asking makes it load the module, if there is one.
    pub fn open() -> Result<Option<Self>> {
        let failed = |refusal: Refusal| refused("opening generic netlink".into(), refusal);
        let mut socket = Socket::open(SockProtocol::NetlinkGeneric).map_err(|errno| failed(errno.into()))?;
        let found = socket.query(wire::family_request(), |id: &mut Option<u16>, _, payload| {
            *id = id.or(wire::decode_family(payload));
        });
        match found {
            Ok(Some(family)) => Ok(Some(WireGuard { socket, family })),
            Ok(None) => Ok(None),
            Err(refusal) if refusal.errno == Errno::ENOENT => Ok(None),
            Err(refusal) => Err(refused("asking for the kernel's WireGuard".into(), refusal)),
        }
    }

    /// The state of a device.
    pub fn device(&mut self, name: &str) -> Result<Device> {
        let message = wire::get_device(self.family, name, NLM_F_DUMP);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.socket
            .query(message, |device: &mut Device, _, payload| wire::decode_device(payload, now, device))
            .map_err(|refusal| refused(format!("reading WireGuard device {name}"), refusal))
    }

    /// Brings a device to what `wanted` says; sessions with peers that stay are kept. Returns the number of changes.
    pub fn ensure(&mut self, name: &str, wanted: &Interface, moved: &BTreeSet<PublicKey>) -> Result<usize> {
        let found = self.device(name)?;
        let mut messages = Vec::new();
        if found.public_key != Some(wanted.public_key) || found.port != wanted.port {
            messages.push(wire::set_device(self.family, name, &wanted.private_key, wanted.port));
        }
        let told = |key: &PublicKey| found.peers.get(key).cloned();
        let changes: Vec<_> = peer_changes(found.peers.keys().copied(), told, &wanted.peers, moved).collect();
        messages.extend(changes.chunks(PEERS_PER_MESSAGE).map(|some| wire::set_peers(self.family, name, some)));
        for message in messages {
            self.socket.request(message).map_err(|refusal| {
                let error: Error = refused(format!("setting WireGuard device {name}"), refusal);
                match error.errno {
                    Errno::EADDRINUSE => error.because(format!("UDP port {} is taken", wanted.port)),
                    _ => error,
                }
            })?;
        }
        Ok(changes.len())
    }
}

/// For the fuzz targets: no answer of the kernel may make a decoder panic.
#[cfg(fuzzing)]
pub(crate) fn decode_as_everything(payload: &[u8]) {
    let _ = wire::decode_family(payload);
    let mut device = Device::default();
    // A dump may come in several messages.
    payload.chunks(1 << 10).for_each(|part| wire::decode_device(part, std::time::Duration::MAX, &mut device));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn changes(
        found: &BTreeMap<PublicKey, Found>,
        wanted: &BTreeMap<PublicKey, Peer>,
        moved: &BTreeSet<PublicKey>,
    ) -> Vec<PeerChange> {
        peer_changes(found.keys().copied(), |key| found.get(key).cloned(), wanted, moved).collect()
    }

    fn peer(endpoint: &str, subnet: &str) -> Peer {
        let remote = Remote { preshared_key: None, endpoint: endpoint.parse().unwrap(), keepalive: 0 };
        Peer { remote, allowed: [subnet.parse().unwrap()].into() }
    }

    fn found(peer: &Peer, endpoint: &str, handshake: Option<u64>) -> Found {
        Found {
            preshared_key: peer.remote.preshared_key.clone(),
            endpoint: Some(endpoint.parse().unwrap()),
            keepalive: peer.remote.keepalive,
            allowed: peer.allowed.clone(),
            handshake: handshake.map(Duration::from_secs),
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let wanted = peer("192.0.2.1:51820", "10.5.1.0/24");
        let all = BTreeMap::from([(key(1), wanted.clone())]);
        let same = BTreeMap::from([(key(1), found(&wanted, "192.0.2.1:51820", None))]);
        assert_eq!(changes(&same, &all, &BTreeSet::new()), []);
        let roamed = BTreeMap::from([(key(1), found(&wanted, "198.51.100.7:999", Some(30)))]);
        assert_eq!(changes(&roamed, &all, &BTreeSet::new()), []);
    }

    #[test]
    fn a_peer_that_is_lost_or_has_moved_is_looked_for_where_it_says() {
        let wanted = peer("192.0.2.1:51820", "10.5.1.0/24");
        let all = BTreeMap::from([(key(1), wanted.clone())]);
        let lost = BTreeMap::from([(key(1), found(&wanted, "198.51.100.7:999", Some(300)))]);
        let roamed = BTreeMap::from([(key(1), found(&wanted, "198.51.100.7:999", Some(30)))]);
        for (found, moved) in [(lost, BTreeSet::new()), (roamed, BTreeSet::from([key(1)]))] {
            match changes(&found, &all, &moved).as_slice() {
                [PeerChange::Set(_, settings)] => assert_eq!(settings.endpoint, Some(wanted.remote.endpoint)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_new_key_takes_the_place_of_the_old_one() {
        let wanted = peer("192.0.2.1:51820", "10.5.1.0/24");
        let before = BTreeMap::from([(key(1), found(&wanted, "192.0.2.1:51820", Some(1)))]);
        let changes = changes(&before, &BTreeMap::from([(key(2), wanted)]), &BTreeSet::new());
        assert!(matches!(changes.as_slice(), [PeerChange::Remove(old), PeerChange::Set(new, _)]
            if (*old, *new) == (key(1), key(2))));
    }

    #[test]
    fn announcements_that_differ_are_moves() {
        let before = BTreeMap::from([(key(1), peer("192.0.2.1:1", "10.5.1.0/24"))]);
        let now = BTreeMap::from([
            (key(1), peer("192.0.2.2:1", "10.5.1.0/24")),
            (key(2), peer("192.0.2.3:1", "10.5.2.0/24")),
        ]);
        assert_eq!(moved(&announced(&before), &now), BTreeSet::from([key(1)]));
    }
}
