//! What the kernel hands over in one piece, cut into packets that fit the tunnel: TCP segmentation and checksums, which a
//! TUN device may leave to its process (struct virtio_net_hdr in linux/virtio_net.h).

use super::checksum::{fold, pseudo_header, sum};
use std::net::IpAddr;

/// Bytes of struct virtio_net_hdr.
pub(super) const OFFLOAD_HEADER: usize = 10;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM
pub(super) const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4 and _TCPV6
pub(super) const TCP_V4: u8 = 1;
pub(super) const TCP_V6: u8 = 4;
/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;

/// FIN and PSH belong to the last piece only, CWR to the first (RFC 9293, RFC 3168 section 6.1.2).
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// What stands before a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OffloadHeader {
    pub(super) flags: u8,
    pub(super) kind: u8,
    pub(super) header_length: u16,
    /// payload bytes of each piece
    pub(super) size: u16,
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
}

impl OffloadHeader {
    pub(super) fn parse(bytes: [u8; OFFLOAD_HEADER]) -> Self {
        let [flags, kind, a, b, c, d, e, f, g, h] = bytes;
        let number = |low, high| u16::from_ne_bytes([low, high]);
        OffloadHeader {
            flags,
            kind,
            header_length: number(a, b),
            size: number(c, d),
            checksum_start: number(e, f),
            checksum_offset: number(g, h),
        }
    }

    pub(super) fn bytes(self) -> [u8; OFFLOAD_HEADER] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.kind, a, b, c, d, e, f, g, h]
    }
}

/// The destination of an IP packet; none if it is no IP packet.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..20)?.first_chunk::<4>().map(|address| IpAddr::from(*address)),
        6 => packet.get(24..40)?.first_chunk::<16>().map(|address| IpAddr::from(*address)),
        _ => None,
    }
}

/// Cuts `packet` as `header` asks for, and hands each piece to `each`. `scratch` holds one piece at a time. None: the header
/// does not fit the packet.
pub(super) fn segment(
    header: OffloadHeader,
    packet: &mut [u8],
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]),
) -> Option<()> {
    let start = usize::from(header.checksum_start);
    if header.kind & !CWR == 0 {
        if header.flags & NEEDS_CHECKSUM != 0 {
            // The field holds the sum over the pseudo header already.
            let value = !fold(sum(packet.get(start..)?, 0));
            let place = start + usize::from(header.checksum_offset);
            // A UDP checksum of zero would say that there is none; this is the other zero (RFC 768).
            let value = if value == 0 { 0xffff } else { value };
            packet.get_mut(place..place + 2)?.copy_from_slice(&value.to_be_bytes());
        }
        each(packet);
        return Some(());
    }
    let size = usize::from(header.size);
    let (addresses, network) = match (header.kind, packet.first()? >> 4) {
        (TCP_V4, 4) => (12..20, 20),
        (TCP_V6, 6) => (8..40, 40),
        _ => return None,
    };
    let begin = start + usize::from(packet.get(start + 12)? >> 4) * 4;
    if start < network || begin < start + 20 || begin > packet.len() || size == 0 {
        return None;
    }
    let (headers, payload) = packet.split_at_checked(begin)?;
    let sequence = u32::from_be_bytes(*headers.get(start + 4..)?.first_chunk()?);
    let pieces = payload.len().div_ceil(size);
    for (number, piece) in payload.chunks(size).enumerate() {
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(piece);
        let length = scratch.len();
        put(scratch, start + 4, &sequence.wrapping_add(u32::try_from(number * size).ok()?).to_be_bytes())?;
        let flags = scratch.get_mut(start + 13)?;
        *flags &= if number + 1 == pieces { 0xff } else { !FIN_PSH };
        *flags &= if number == 0 { 0xff } else { !CWR };
        match header.kind {
            TCP_V4 => {
                let id = u16::from_be_bytes(*headers.get(4..)?.first_chunk()?).wrapping_add(number as u16);
                put(scratch, 2, &u16::try_from(length).ok()?.to_be_bytes())?;
                put(scratch, 4, &id.to_be_bytes())?;
                put(scratch, 10, &[0, 0])?;
                let check = !fold(sum(scratch.get(..start)?, 0));
                put(scratch, 10, &check.to_be_bytes())?;
            }
            _ => put(scratch, 4, &u16::try_from(length - network).ok()?.to_be_bytes())?,
        }
        put(scratch, start + TCP_CHECKSUM, &[0, 0])?;
        let pseudo = pseudo_header(scratch.get(addresses.clone())?, libc::IPPROTO_TCP as u8, length - start);
        let check = !fold(sum(scratch.get(start..)?, pseudo));
        put(scratch, start + TCP_CHECKSUM, &check.to_be_bytes())?;
        each(scratch);
    }
    Some(())
}

pub(super) fn put(bytes: &mut [u8], place: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(place..place + value.len())?.copy_from_slice(value);
    Some(())
}
