//! The opposite of segmentation: consecutive pieces of one TCP stream are handed to the kernel as one packet, so that it
//! walks its receive path once for all of them.

use super::checksum::{fold, pseudo_header, sum};
use super::segment::{NEEDS_CHECKSUM, OFFLOAD_HEADER, OffloadHeader, TCP_CHECKSUM, TCP_V4, TCP_V6, put};

/// Longest IP packet.
const LONGEST: usize = 65_535;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Where the parts of a TCP packet are.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// offset of the TCP header
    tcp: usize,
    /// offset of the payload
    payload: usize,
    sequence: u32,
    pushes: bool,
}

impl Shape {
    /// Of a packet that may be merged with others: TCP without anything unusual, with a payload.
    fn of(packet: &[u8]) -> Option<Self> {
        let tcp = match packet.first()? >> 4 {
            // No options, and no fragment of a larger packet (all but the DF bit).
            4 if *packet.first()? == 0x45
                && packet.get(9) == Some(&6)
                && *packet.get(6)? & 0xbf == 0
                && packet.get(7) == Some(&0) =>
            {
                20
            }
            6 if packet.get(6) == Some(&6) => 40,
            _ => return None,
        };
        let payload = tcp + usize::from(packet.get(tcp + 12)? >> 4) * 4;
        let flags = *packet.get(tcp + 13)?;
        if flags & !PSH != ACK || payload < tcp + 20 || payload >= packet.len() {
            return None;
        }
        let sequence = u32::from_be_bytes(*packet.get(tcp + 4..)?.first_chunk()?);
        Some(Shape { tcp, payload, sequence, pushes: flags & PSH != 0 })
    }

    /// Whether both headers say the same but for lengths, identification, sequence, PSH and checksums.
    fn is_same_stream(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let same = |from: usize, to: usize| ours.get(from..to) == theirs.get(from..to);
        let network = match self.tcp {
            20 => same(0, 2) && same(6, 10) && same(12, 20),
            _ => same(0, 4) && same(6, 40),
        };
        // Ports; acknowledgement and header length; window; urgent pointer and options. Flags are ACK, and maybe PSH.
        let tcp = self.tcp;
        network
            && same(tcp, tcp + 4)
            && same(tcp + 8, tcp + 13)
            && same(tcp + 14, tcp + 16)
            && same(tcp + 18, self.payload)
    }
}

/// Collects packets for a TUN device with offload headers.
#[derive(Debug)]
pub(super) struct Merge {
    /// offload header and packet
    buffer: Vec<u8>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    shape: Shape,
    /// payload bytes of each piece but the last
    size: usize,
    pieces: usize,
    next: u32,
    /// nothing may follow
    closed: bool,
}

impl Merge {
    pub(super) fn new() -> Self {
        Merge { buffer: Vec::with_capacity(OFFLOAD_HEADER + LONGEST), open: None }
    }

    /// Takes a packet, and writes what it cannot be merged with.
    pub(super) fn add(&mut self, packet: &[u8], write: &mut impl FnMut(&[u8])) {
        let shape = Shape::of(packet);
        if shape.is_some_and(|shape| self.append(shape, packet)) {
            return;
        }
        self.flush(write);
        self.buffer.resize(OFFLOAD_HEADER, 0);
        self.buffer.extend_from_slice(packet);
        match shape {
            Some(shape) => {
                let size = packet.len() - shape.payload;
                let next = shape.sequence.wrapping_add(size as u32);
                self.open = Some(Open { shape, size, pieces: 1, next, closed: shape.pushes });
            }
            None => {
                write(&self.buffer);
                self.buffer.clear();
            }
        }
    }

    fn append(&mut self, shape: Shape, packet: &[u8]) -> bool {
        let Some(open) = &mut self.open else { return false };
        let payload = packet.get(shape.payload..).unwrap_or_default();
        let ours = self.buffer.get(OFFLOAD_HEADER..).unwrap_or_default();
        let follows = !open.closed
            && shape.sequence == open.next
            && (shape.tcp, shape.payload) == (open.shape.tcp, open.shape.payload)
            && payload.len() <= open.size
            && ours.len() + payload.len() <= LONGEST
            && shape.is_same_stream(ours, packet);
        if follows {
            self.buffer.extend_from_slice(payload);
            open.next = open.next.wrapping_add(payload.len() as u32);
            open.pieces += 1;
            open.closed = payload.len() < open.size || shape.pushes;
            open.shape.pushes |= shape.pushes;
        }
        follows
    }

    /// Writes what is held back.
    pub(super) fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        if let Some(open) = self.open.take() {
            // A packet that is not what its shape said cannot be: it is our own copy.
            if open.pieces == 1 || self.finish(&open).is_some() {
                write(&self.buffer);
            }
        }
        self.buffer.clear();
    }

    /// Fills in what covers all pieces. The peer's packets are authentic, so that their checksums need not be looked at: the
    /// kernel's own WireGuard takes them for granted too.
    fn finish(&mut self, open: &Open) -> Option<()> {
        let (header, packet) = self.buffer.split_at_mut_checked(OFFLOAD_HEADER)?;
        let (tcp, length) = (open.shape.tcp, packet.len());
        let (kind, addresses) = if tcp == 20 {
            put(packet, 2, &u16::try_from(length).ok()?.to_be_bytes())?;
            put(packet, 10, &[0, 0])?;
            let check = !fold(sum(packet.get(..tcp)?, 0));
            put(packet, 10, &check.to_be_bytes())?;
            (TCP_V4, 12..20)
        } else {
            put(packet, 4, &u16::try_from(length - tcp).ok()?.to_be_bytes())?;
            (TCP_V6, 8..40)
        };
        if open.shape.pushes {
            *packet.get_mut(tcp + 13)? |= PSH;
        }
        let pseudo = fold(pseudo_header(packet.get(addresses)?, libc::IPPROTO_TCP as u8, length - tcp));
        put(packet, tcp + TCP_CHECKSUM, &pseudo.to_be_bytes())?;
        let offload = OffloadHeader {
            flags: NEEDS_CHECKSUM,
            kind,
            header_length: u16::try_from(open.shape.payload).ok()?,
            size: u16::try_from(open.size).ok()?,
            checksum_start: u16::try_from(tcp).ok()?,
            checksum_offset: TCP_CHECKSUM as u16,
        };
        header.copy_from_slice(&offload.bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::segment;
    use super::*;

    /// A TCP packet of either family with correct checksums.
    fn packet(v6: bool, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = 32 + payload.len();
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 63];
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header.extend((0..32).map(|byte| byte + 1));
            header
        } else {
            let mut header = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 63, 6, 0, 0, 10, 5, 1, 2, 10, 5, 2, 2];
            header[2..4].copy_from_slice(&(20 + length as u16).to_be_bytes());
            let check = !fold(sum(&header, 0));
            header[10..12].copy_from_slice(&check.to_be_bytes());
            header
        };
        let tcp = packet.len();
        let mut header = vec![0x12, 0x34, 0x56, 0x78];
        header.extend(sequence.to_be_bytes());
        header.extend([0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        packet.extend(header);
        packet.extend(payload);
        let addresses = if v6 { 8..40 } else { 12..20 };
        let check = !fold(sum(&packet[tcp..], pseudo_header(&packet[addresses], 6, length)));
        packet[tcp + 16..tcp + 18].copy_from_slice(&check.to_be_bytes());
        packet
    }

    fn merged(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut merge, mut written) = (Merge::new(), Vec::new());
        let mut write = |bytes: &[u8]| written.push(bytes.to_vec());
        for packet in packets {
            merge.add(packet, &mut write);
        }
        merge.flush(&mut write);
        written
    }

    /// The packets that the kernel would make of what was written.
    fn cut(written: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        for whole in written {
            let header = OffloadHeader::parse(*whole.first_chunk().unwrap());
            let mut packet = whole[OFFLOAD_HEADER..].to_vec();
            segment(header, &mut packet, &mut Vec::new(), |piece| pieces.push(piece.to_vec())).unwrap();
        }
        pieces
    }

    #[test]
    fn a_stream_is_merged_and_cut_back_into_the_same_packets() {
        for v6 in [false, true] {
            let data: Vec<u8> = (0..3500u32).map(|byte| byte as u8).collect();
            let mut packets: Vec<Vec<u8>> = Vec::new();
            for (number, part) in data.chunks(1000).enumerate() {
                let last = part.len() < 1000;
                let flags = if last { ACK | PSH } else { ACK };
                let mut packet = packet(v6, 0xffff_fe00u32.wrapping_add(1000 * number as u32), flags, part);
                if !v6 {
                    // The identification counts up, as a sender's does.
                    packet[4..6].copy_from_slice(&(7 + number as u16).to_be_bytes());
                    packet[10..12].copy_from_slice(&[0, 0]);
                    let check = !fold(sum(&packet[..20], 0));
                    packet[10..12].copy_from_slice(&check.to_be_bytes());
                }
                packets.push(packet);
            }
            let written = merged(&packets);
            assert_eq!(written.len(), 1, "IPv6: {v6}");
            assert_eq!(cut(&written), packets, "IPv6: {v6}");
        }
    }

    #[test]
    fn what_does_not_belong_together_stays_apart() {
        let first = packet(false, 1000, ACK, &[1; 100]);
        let mut other_port = packet(false, 1100, ACK, &[1; 100]);
        other_port[21] ^= 1;
        let cases = [
            packet(false, 1101, ACK, &[1; 100]),
            packet(false, 1100, ACK, &[1; 101]),
            packet(false, 1100, ACK | 1, &[1; 100]),
            packet(false, 1100, ACK, &[]),
            packet(true, 1100, ACK, &[1; 100]),
            other_port,
            vec![0x45],
            vec![],
        ];
        for next in cases {
            let written = merged(&[first.clone(), next.clone()]);
            assert_eq!(written.len(), 2, "{next:?}");
            assert!(
                written.iter().zip([&first, &next]).all(|(written, packet)| written[OFFLOAD_HEADER..] == packet[..])
            );
        }
        let pushed = packet(false, 1000, ACK | PSH, &[1; 100]);
        assert_eq!(merged(&[pushed, packet(false, 1100, ACK, &[1; 100])]).len(), 2, "nothing follows a push");
        let short = [first, packet(false, 1100, ACK, &[1; 50]), packet(false, 1150, ACK, &[1; 50])];
        assert_eq!(merged(&short).len(), 2, "nothing follows a short piece");
    }

    #[test]
    fn no_more_is_merged_than_an_ip_packet_holds() {
        let packets: Vec<Vec<u8>> = (0..100).map(|number| packet(false, 1400 * number, ACK, &[5; 1400])).collect();
        let written = merged(&packets);
        assert!(written.len() == 3 && written.iter().all(|whole| whole.len() <= OFFLOAD_HEADER + LONGEST));
        assert_eq!(cut(&written).len(), 100);
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let whole = packet(false, 1, ACK, &[1; 3000]);
        let good = OffloadHeader {
            flags: 1,
            kind: TCP_V4,
            header_length: 52,
            size: 1000,
            checksum_start: 20,
            checksum_offset: 16,
        };
        let bad = [
            OffloadHeader { size: 0, ..good },
            OffloadHeader { kind: TCP_V6, ..good },
            OffloadHeader { kind: 3, ..good },
            OffloadHeader { checksum_start: 8, ..good },
            OffloadHeader { checksum_start: 60_000, ..good },
            OffloadHeader { kind: 0, checksum_start: 60_000, ..good },
        ];
        let cut = |header, packet: &[u8]| segment(header, &mut packet.to_vec(), &mut Vec::new(), |_| {});
        assert_eq!(cut(good, &whole), Some(()));
        for header in bad {
            assert_eq!(cut(header, &whole), None, "{header:?}");
        }
        assert_eq!(cut(good, &whole[..30]), None);
        assert_eq!(cut(good, &[]), None);
    }
}
