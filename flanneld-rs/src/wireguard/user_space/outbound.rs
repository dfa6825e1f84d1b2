//! From the device to the peers: packets are cut, encrypted and sent.

use super::Shared;
use super::datagrams::Datagrams;
use super::peers::Peers;
use super::peers::Session;
use super::segment::{OFFLOAD_HEADER, OffloadHeader, destination, segment};
use defguard_boringtun::noise::TunnResult;
use std::io::{ErrorKind, PipeReader};
use std::net::SocketAddr;
use std::time::Instant;

/// Packets, each of up to 64 KiB, that are taken before those encrypted must leave.
const BURST: usize = 32;
/// The longest that a TUN device hands over.
const LONGEST: usize = OFFLOAD_HEADER + 65_536;
/// Bytes of a handshake initiation (section 5.4.2 of the WireGuard paper).
const INITIATION: usize = 148;

/// Carries packets until the device is gone or `stop` is closed.
pub(super) fn run(shared: &Shared, stop: &PipeReader) {
    let mut buffer = vec![0; LONGEST];
    let mut piece = Vec::with_capacity(LONGEST);
    let mut datagrams = Datagrams::new(shared);
    while shared.wait(&shared.tun, stop, None) {
        let peers = shared.peers();
        for _ in 0..BURST {
            match shared.tun.read(&mut buffer) {
                Ok(length) => {
                    let packet = buffer.get_mut(..length).unwrap_or_default();
                    carry(&peers, packet, &mut piece, &mut datagrams);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return shared.end(&format!("reading from the device: {error}")),
            }
        }
        datagrams.flush();
    }
}

fn carry(peers: &Peers, bytes: &mut [u8], piece: &mut Vec<u8>, datagrams: &mut Datagrams<'_>) {
    let Some((header, packet)) = bytes.split_first_chunk_mut::<OFFLOAD_HEADER>() else { return };
    // Addresses of no peer do not get here but for a moment: there is a route for each peer's subnet only.
    let Some(peer) = destination(packet).and_then(|address| peers.by_address(address)) else { return };
    let mut session = peer.session();
    segment(OffloadHeader::parse(*header), packet, piece, |packet| {
        let to = session.endpoint;
        datagrams.add(to, packet.len(), |room| encrypt(&mut session, packet, room));
    });
}

/// Encrypts a packet, or keeps it and begins a handshake; returns the number of bytes to be sent.
fn encrypt(session: &mut Session, packet: &[u8], room: &mut [u8]) -> usize {
    match session.tunnel.encapsulate(packet, room) {
        TunnResult::WriteToNetwork(bytes) => {
            let initiation = bytes.len() == INITIATION && bytes.first() == Some(&1);
            let length = bytes.len();
            if initiation {
                session.unanswered.get_or_insert_with(Instant::now);
            }
            length
        }
        _ => 0,
    }
}

/// Begins a handshake if none is under way.
pub(super) fn greet(session: &mut Session, datagrams: &mut Datagrams<'_>) {
    let to: SocketAddr = session.endpoint;
    datagrams.add(to, 0, |room| match session.tunnel.format_handshake_initiation(room, false) {
        TunnResult::WriteToNetwork(bytes) => bytes.len(),
        _ => 0,
    });
}
