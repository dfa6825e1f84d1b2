//! From the device to the peers: packets are cut, encrypted and sent.

use super::Shared;
use super::datagrams::Datagrams;
use super::peers::Peers;
use super::segment::{OFFLOAD_HEADER, OffloadHeader, destination, segment};
use super::session::Line;
use std::io::{ErrorKind, PipeReader};

/// Packets, each of up to 64 KiB, that are taken before those encrypted must leave.
const BURST: usize = 32;
/// The longest that a TUN device hands over.
const LONGEST: usize = OFFLOAD_HEADER + 65_536;

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
                    carry(shared, &peers, packet, &mut piece, &mut datagrams);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return shared.end(&format!("reading from the device: {error}")),
            }
        }
        datagrams.flush();
    }
}

fn carry(shared: &Shared, peers: &Peers, bytes: &mut [u8], piece: &mut Vec<u8>, datagrams: &mut Datagrams<'_>) {
    let Some((header, packet)) = bytes.split_first_chunk_mut::<OFFLOAD_HEADER>() else { return };
    // Addresses of no peer do not get here but for a moment: there is a route for each peer's subnet only.
    let Some(peer) = destination(packet).and_then(|address| peers.by_address(address)) else { return };
    let mut line = Line::new(shared, peer);
    let to = line.session.endpoint;
    segment(OffloadHeader::parse(*header), packet, piece, |packet| {
        datagrams.add(to, packet.len(), |room| line.encrypt(packet, room));
    });
}
