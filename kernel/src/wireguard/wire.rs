//! The kernel's WireGuard as messages (linux/wireguard.h, linux/genetlink.h). Numbers are in the byte order of the machine.

use super::{Device, Found, PeerChange, PublicKey, SecretKey};
use crate::netlink::attribute::{Attributes, attributes, find};
use crate::netlink::socket::Message;
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY and its attributes
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// enum wg_cmd
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
/// enum wgdevice_attribute
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
/// enum wgpeer_attribute
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_ALLOWED: u16 = 9;
/// enum wgpeer_flag
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// enum wgallowedip_attribute
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;
/// struct genlmsghdr: command, version, two bytes reserved
const HEADER: usize = 4;

pub(super) fn family_request() -> Message {
    let body = Attributes::after(&[GET_FAMILY, 1, 0, 0]).text(FAMILY_NAME, "wireguard");
    Message { kind: CONTROL, flags: 0, payload: body.finish() }
}

pub(super) fn decode_family(payload: &[u8]) -> Option<u16> {
    find(payload.get(HEADER..)?, FAMILY_ID)?.first_chunk().map(|id| u16::from_ne_bytes(*id))
}

pub(super) fn get_device(family: u16, name: &str, flags: u16) -> Message {
    let body = Attributes::after(&[GET_DEVICE, 1, 0, 0]).text(DEVICE_NAME, name);
    Message { kind: family, flags, payload: body.finish() }
}

pub(super) fn set_device(family: u16, name: &str, private: &SecretKey, port: u16) -> Message {
    let body = Attributes::after(&[SET_DEVICE, 1, 0, 0])
        .text(DEVICE_NAME, name)
        .bytes(DEVICE_PRIVATE_KEY, private.bytes())
        .bytes(DEVICE_PORT, &port.to_ne_bytes());
    Message { kind: family, flags: 0, payload: body.finish() }
}

pub(super) fn set_peers(family: u16, name: &str, changes: &[PeerChange]) -> Message {
    let peers =
        changes.iter().zip(0..).fold(Attributes::new(), |list, (change, place)| list.nested(place, peer(change)));
    let body = Attributes::after(&[SET_DEVICE, 1, 0, 0]).text(DEVICE_NAME, name).nested(DEVICE_PEERS, peers);
    Message { kind: family, flags: 0, payload: body.finish() }
}

fn peer(change: &PeerChange) -> Attributes {
    match change {
        PeerChange::Remove(key) => {
            Attributes::new().bytes(PEER_PUBLIC_KEY, &key.0).bytes(PEER_FLAGS, &REMOVE.to_ne_bytes())
        }
        PeerChange::Set(key, settings) => {
            // All zeros is how the kernel says that there is none.
            let preshared = settings.preshared_key.as_ref().map_or([0; 32], |key| *key.bytes());
            let mut peer = Attributes::new()
                .bytes(PEER_PUBLIC_KEY, &key.0)
                .bytes(PEER_FLAGS, &REPLACE_ALLOWED.to_ne_bytes())
                .bytes(PEER_PRESHARED_KEY, &preshared)
                .bytes(PEER_KEEPALIVE, &settings.keepalive.to_ne_bytes());
            if let Some(endpoint) = settings.endpoint {
                peer = peer.bytes(PEER_ENDPOINT, &socket_address(endpoint));
            }
            let allowed = settings.allowed.iter().zip(0..);
            peer.nested(
                PEER_ALLOWED,
                allowed.fold(Attributes::new(), |list, (part, place)| list.nested(place, allow(part))),
            )
        }
    }
}

fn allow(network: &IpNetwork) -> Attributes {
    let (family, address) = match network.network() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    Attributes::new()
        .bytes(ALLOWED_FAMILY, &u16::try_from(family).unwrap_or_default().to_ne_bytes())
        .bytes(ALLOWED_ADDRESS, &address)
        .bytes(ALLOWED_LENGTH, &[network.prefix()])
}

/// struct sockaddr_in or sockaddr_in6
fn socket_address(endpoint: SocketAddr) -> Vec<u8> {
    let family = if endpoint.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = u16::try_from(family).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(endpoint.port().to_be_bytes());
    match endpoint {
        SocketAddr::V4(endpoint) => {
            bytes.extend(endpoint.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(endpoint) => {
            bytes.extend(endpoint.flowinfo().to_be_bytes());
            bytes.extend(endpoint.ip().octets());
            bytes.extend(endpoint.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// Adds what one message of a dump tells to `device`: a peer with many addresses is continued in the next one. `now` is
/// the time since 1970.
pub(super) fn decode_device(payload: &[u8], now: Duration, device: &mut Device) {
    for (kind, value) in attributes(payload.get(HEADER..).unwrap_or_default()) {
        match kind {
            DEVICE_PUBLIC_KEY => device.public_key = public_key(value),
            DEVICE_PORT => device.port = number(value),
            DEVICE_PEERS => attributes(value).for_each(|(_, peer)| decode_peer(peer, now, device)),
            _ => {}
        }
    }
}

fn decode_peer(bytes: &[u8], now: Duration, device: &mut Device) {
    let Some(key) = find(bytes, PEER_PUBLIC_KEY).and_then(public_key) else { return };
    let allowed = find(bytes, PEER_ALLOWED).unwrap_or_default();
    let allowed = attributes(allowed).filter_map(|(_, part)| decode_allowed(part));
    if let Some(begun) = device.peers.get_mut(&key) {
        begun.allowed.extend(allowed);
        return;
    }
    let preshared = find(bytes, PEER_PRESHARED_KEY).and_then(public_key).filter(|key| key.0 != [0; 32]);
    // struct __kernel_timespec; zero: never
    let handshake = find(bytes, PEER_LAST_HANDSHAKE).and_then(<[u8]>::first_chunk).map(|at| i64::from_ne_bytes(*at));
    let handshake = handshake.and_then(|at| u64::try_from(at).ok()).filter(|at| *at > 0);
    let found = Found {
        preshared_key: preshared.map(|key| SecretKey::new(key.0)),
        endpoint: find(bytes, PEER_ENDPOINT).and_then(decode_endpoint),
        keepalive: find(bytes, PEER_KEEPALIVE).map_or(0, number),
        allowed: allowed.collect::<BTreeSet<_>>(),
        handshake: handshake.map(|at| now.saturating_sub(Duration::from_secs(at))),
    };
    device.peers.insert(key, found);
}

fn decode_allowed(bytes: &[u8]) -> Option<IpNetwork> {
    let length = *find(bytes, ALLOWED_LENGTH)?.first()?;
    IpNetwork::new(address(find(bytes, ALLOWED_ADDRESS)?)?, length).ok()
}

fn decode_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip = match i32::from(u16::from_ne_bytes(*bytes.first_chunk()?)) {
        libc::AF_INET => address(bytes.get(4..8)?)?,
        libc::AF_INET6 => address(bytes.get(8..24)?)?,
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn public_key(bytes: &[u8]) -> Option<PublicKey> {
    bytes.try_into().ok().map(PublicKey)
}

fn number(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::super::{Peer, PeerSettings, Remote, peer_changes};
    use super::*;
    use std::collections::BTreeMap;

    fn settings() -> PeerSettings {
        PeerSettings {
            preshared_key: Some(SecretKey::new([7; 32])),
            endpoint: Some("[2001:db8::9]:51821".parse().unwrap()),
            keepalive: 25,
            allowed: ["10.5.2.0/24".parse().unwrap(), "fd00:5::/64".parse().unwrap()].into(),
        }
    }

    #[test]
    fn a_peer_is_encoded_as_the_header_says() {
        let message = set_peers(0x1d, "wg", &[PeerChange::Remove(PublicKey([1; 32]))]);
        let mut expected: Vec<u8> = vec![1, 1, 0, 0, 7, 0, 2, 0, b'w', b'g', 0, 0];
        expected.extend([52u16, 0x8008, 48, 0x8000, 36, 1].iter().flat_map(|number| number.to_ne_bytes()));
        expected.extend([1; 32]);
        expected.extend([8u16, 3].iter().flat_map(|number| number.to_ne_bytes()));
        expected.extend(1u32.to_ne_bytes());
        assert_eq!((message.kind, message.payload), (0x1d, expected));
    }

    /// What is set is what a dump tells, since both use the same attributes; a continued peer is one.
    #[test]
    fn what_is_set_is_read_back() {
        let key = PublicKey([1; 32]);
        let message = set_peers(0x1d, "wg", &[PeerChange::Set(key, settings())]);
        let mut device = Device::default();
        decode_device(&message.payload, Duration::ZERO, &mut device);
        let PeerSettings { preshared_key, endpoint, keepalive, allowed } = settings();
        let found = Found {
            preshared_key: preshared_key.clone(),
            endpoint,
            keepalive,
            allowed: allowed.clone(),
            handshake: None,
        };
        assert_eq!(device.peers, BTreeMap::from([(key, found)]));
        let wanted = Peer { remote: Remote { preshared_key, endpoint: endpoint.unwrap(), keepalive }, allowed };
        let (wanted, told) = (BTreeMap::from([(key, wanted)]), |key: &PublicKey| device.peers.get(key).cloned());
        assert_eq!(peer_changes(device.peers.keys().copied(), told, &wanted, &BTreeSet::new()).count(), 0);
        let more = PeerSettings { allowed: ["10.5.3.0/24".parse().unwrap()].into(), ..settings() };
        decode_device(&set_peers(0x1d, "wg", &[PeerChange::Set(key, more)]).payload, Duration::ZERO, &mut device);
        assert_eq!(device.peers[&key].allowed.len(), 3);
    }

    #[test]
    fn a_device_and_a_handshake_are_read() {
        let mut body = Attributes::after(&[0, 1, 0, 0])
            .bytes(DEVICE_PUBLIC_KEY, &[9; 32])
            .bytes(DEVICE_PORT, &51820u16.to_ne_bytes());
        let at: Vec<u8> = [100i64, 0].iter().flat_map(|number| number.to_ne_bytes()).collect();
        let peer = Attributes::new().bytes(PEER_PUBLIC_KEY, &[1; 32]).bytes(PEER_LAST_HANDSHAKE, &at);
        body = body.nested(DEVICE_PEERS, Attributes::new().nested(0, peer));
        let mut device = Device::default();
        decode_device(&body.finish(), Duration::from_secs(130), &mut device);
        assert_eq!((device.public_key, device.port), (Some(PublicKey([9; 32])), 51820));
        assert_eq!(device.peers[&PublicKey([1; 32])].handshake, Some(Duration::from_secs(30)));
    }

    #[test]
    fn no_message_makes_the_decoder_panic() {
        let whole = set_peers(1, "wg", &[PeerChange::Set(PublicKey([1; 32]), settings())]).payload;
        for length in 0..whole.len() {
            for place in (0..length).step_by(3) {
                let mut damaged = whole[..length].to_vec();
                damaged[place] ^= 0xff;
                decode_device(&damaged, Duration::ZERO, &mut Device::default());
                let _ = decode_family(&damaged);
            }
        }
    }
}
