//! IP packets as a router sees them: pure functions on bytes.

use crate::family::Family;
use std::net::IpAddr;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// flannel's, for packets that go to a pod of this node.
const ANSWER_TTL: u8 = 8;
/// Any IPv6 link carries so much (RFC 8200 section 5), and no error message is longer (RFC 4443 section 2.4).
const IPV6_MINIMUM_MTU: usize = 1280;
/// The longest error message.
pub(super) const MAX_ANSWER: usize = IPV6_MINIMUM_MTU;

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// Reads the addresses of a packet; none if it is no packet of this family.
pub(super) fn addresses(family: Family, packet: &[u8]) -> Option<Addresses> {
    match family {
        Family::V4 => {
            let header = packet.first_chunk::<20>()?;
            let own_length = usize::from(header[0] & 0xf) * 4;
            if header[0] >> 4 != 4 || own_length < 20 || packet.len() < own_length {
                return None;
            }
            Some(Addresses { source: v4(packet.get(12..16)?)?, destination: v4(packet.get(16..20)?)? })
        }
        Family::V6 => {
            let header = packet.first_chunk::<40>()?;
            if header[0] >> 4 != 6 {
                return None;
            }
            Some(Addresses { source: v6(packet.get(8..24)?)?, destination: v6(packet.get(24..40)?)? })
        }
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Counts one more router: lowers the TTL (hop limit) of a packet that [`addresses`] could read, and mends the header's
/// checksum (RFC 1141). False: it has passed enough of them, and is as it was.
#[must_use]
pub(super) fn pass_router(family: Family, packet: &mut [u8]) -> bool {
    let hops = match family {
        Family::V4 => packet.get_mut(8),
        Family::V6 => packet.get_mut(7),
    };
    match hops {
        Some(hops) if *hops > 1 => *hops -= 1,
        _ => return false,
    }
    if let (Family::V4, Some([high, low])) = (family, packet.get_mut(10..12)) {
        let sum = u32::from(u16::from_be_bytes([*high, *low])) + 0x100;
        // End-around carry; 0xffff is the other form of zero.
        let sum = (sum + u32::from(sum >= 0xffff)) & 0xffff;
        [*high, *low] = (sum as u16).to_be_bytes();
    }
    true
}

/// Writes the ICMP error "no route to destination" about `packet` into `buffer`, and returns its length. None where no
/// error may be sent: about errors, about fragments but the first, about what is not from one host to one host (RFC 1122
/// section 3.2.2, RFC 4443 section 2.4).
///
/// It comes from the very address that is not reached. Linux takes nothing in from an address that is its own
/// (`fib_validate_source`), and that of our device is; the destination's is routed to the device that the error comes by.
pub(super) fn unreachable(packet: &[u8], buffer: &mut [u8; MAX_ANSWER]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => answer_ipv4(packet, buffer),
        6 => answer_ipv6(packet, buffer),
        _ => None,
    }
}

fn answer_ipv4(packet: &[u8], buffer: &mut [u8]) -> Option<usize> {
    let Addresses { source: IpAddr::V4(source), destination: IpAddr::V4(destination) } = addresses(Family::V4, packet)?
    else {
        return None;
    };
    let one_host =
        !source.is_unspecified() && !source.is_multicast() && !source.is_broadcast() && !source.is_loopback();
    let to_one = !destination.is_multicast() && !destination.is_broadcast();
    let is_first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
    let own_length = usize::from(packet.first()? & 0xf) * 4;
    // Echo, timestamp, information and address mask requests are questions; all else in ICMP may be an error.
    let is_error = *packet.get(9)? == ICMP && !matches!(packet.get(own_length)?, 8 | 13 | 15 | 17);
    if !one_host || !to_one || !is_first || is_error {
        return None;
    }
    let quoted = packet.get(..own_length + 8).unwrap_or(packet);
    let length = 28 + quoted.len();
    let message = buffer.get_mut(..length)?;
    message.fill(0);
    message.get_mut(28..)?.copy_from_slice(quoted);
    let (header, icmp) = message.split_at_mut_checked(20)?;
    // Destination unreachable: network (RFC 792).
    icmp.get_mut(..2)?.copy_from_slice(&[3, 0]);
    let sum = checksum(&[icmp]);
    icmp.get_mut(2..4)?.copy_from_slice(&sum);
    let total = u16::try_from(length).ok()?.to_be_bytes();
    header.copy_from_slice(&[0x45, 0, total[0], total[1], 0, 0, 0, 0, ANSWER_TTL, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    header.get_mut(12..16)?.copy_from_slice(&destination.octets());
    header.get_mut(16..20)?.copy_from_slice(&source.octets());
    let sum = checksum(&[header]);
    header.get_mut(10..12)?.copy_from_slice(&sum);
    Some(length)
}

fn answer_ipv6(packet: &[u8], buffer: &mut [u8]) -> Option<usize> {
    let Addresses { source: IpAddr::V6(source), destination: IpAddr::V6(destination) } = addresses(Family::V6, packet)?
    else {
        return None;
    };
    let one_host = !source.is_unspecified() && !source.is_multicast() && !source.is_loopback();
    // Behind an extension header there may be anything: TCP, UDP and questions are what pods wait for an answer to.
    let is_question = match packet.get(6)? {
        6 | 17 => true,
        58 => *packet.get(40)? >= 128,
        _ => false,
    };
    if !one_host || destination.is_multicast() || !is_question {
        return None;
    }
    let quoted = packet.get(..IPV6_MINIMUM_MTU - 48).unwrap_or(packet);
    let length = 48 + quoted.len();
    let message = buffer.get_mut(..length)?;
    message.fill(0);
    message.get_mut(48..)?.copy_from_slice(quoted);
    let (header, icmp) = message.split_at_mut_checked(40)?;
    // Destination unreachable: no route (RFC 4443 section 3.1).
    icmp.get_mut(..2)?.copy_from_slice(&[1, 0]);
    let payload = u16::try_from(icmp.len()).ok()?.to_be_bytes();
    let sum =
        checksum(&[&destination.octets(), &source.octets(), &[0, 0, payload[0], payload[1], 0, 0, 0, ICMPV6], icmp]);
    icmp.get_mut(2..4)?.copy_from_slice(&sum);
    header.get_mut(..8)?.copy_from_slice(&[0x60, 0, 0, 0, payload[0], payload[1], ICMPV6, ANSWER_TTL]);
    header.get_mut(8..24)?.copy_from_slice(&destination.octets());
    header.get_mut(24..40)?.copy_from_slice(&source.octets());
    Some(length)
}

/// The Internet checksum (RFC 1071) over parts, of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let word = |pair: &[u8]| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    };
    let mut sum: u32 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// For the fuzz targets: what this node does with a packet from anywhere. A header that is right stays so, and a sender is told
/// in a packet that can be read, and about which nobody is told in turn.
#[cfg(fuzzing)]
pub(super) fn route(family: Family, bytes: &[u8]) {
    let mut answer = [0; MAX_ANSWER];
    if let Some(length) = unreachable(bytes, &mut answer) {
        let answer = answer.get(..length).expect("the answer is inside the buffer");
        let of = if bytes[0] >> 4 == 4 { Family::V4 } else { Family::V6 };
        let (told, asked) = (addresses(of, answer).expect("the answer is a packet"), addresses(of, bytes));
        assert_eq!(asked.map(|asked| (asked.destination, asked.source)), Some((told.source, told.destination)));
        assert_eq!(unreachable(answer, &mut [0; MAX_ANSWER]), None);
    }
    let header = |packet: &[u8]| packet.get(..usize::from(packet[0] & 0xf) * 4).map(|header| checksum(&[header]));
    let mut packet = bytes.to_vec();
    if addresses(family, bytes).is_some() && pass_router(family, &mut packet) {
        assert_eq!(addresses(family, &packet), addresses(family, bytes));
        let was_right = header(bytes) == Some([0, 0]);
        assert!(family == Family::V6 || !was_right || header(&packet) == Some([0, 0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    /// A UDP packet from 10.5.1.2 to 10.5.9.9 with four bytes in it.
    fn v4_packet() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 7, 0, 0, 64, 17, 0, 0, 10, 5, 1, 2, 10, 5, 9, 9];
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum);
        packet.extend([0x30, 0, 0, 7, 0, 12, 0, 0, 1, 2, 3, 4]);
        packet
    }

    fn v6_packet() -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
        packet.extend(Ipv6Addr::new(0xfd00, 5, 1, 0, 0, 0, 0, 2).octets());
        packet.extend(Ipv6Addr::new(0xfd00, 5, 9, 0, 0, 0, 0, 9).octets());
        packet.extend([0x30, 0, 0, 7, 0, 12, 0, 0, 1, 2, 3, 4]);
        packet
    }

    #[test]
    fn each_router_lowers_the_ttl_and_the_checksum_stays_right() {
        // Every value of the identification, so that every carry is met.
        for id in 0..=u16::MAX {
            let mut packet = v4_packet();
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[8] = 2;
            packet[10..12].fill(0);
            let sum = checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum);
            assert!(pass_router(Family::V4, &mut packet));
            assert_eq!((packet[8], checksum(&[&packet[..20]])), (1, [0, 0]), "{id}");
            let before = packet.clone();
            assert!(!pass_router(Family::V4, &mut packet));
            assert_eq!(packet, before);
        }
        let mut packet = v6_packet();
        assert!(pass_router(Family::V6, &mut packet));
        assert_eq!(packet[7], 63);
        packet[7] = 0;
        assert!(!pass_router(Family::V6, &mut packet));
    }

    #[test]
    fn a_sender_is_told_in_the_words_of_the_rfcs() {
        let mut buffer = [0; MAX_ANSWER];
        let length = unreachable(&v4_packet(), &mut buffer).unwrap();
        let message = &buffer[..length];
        assert_eq!(length, 20 + 8 + 20 + 8);
        assert_eq!((message[8], &message[20..22]), (8, &[3, 0][..]));
        assert_eq!((checksum(&[&message[..20]]), checksum(&[&message[20..]])), ([0, 0], [0, 0]));
        assert_eq!(&message[28..], &v4_packet()[..28]);
        let told = addresses(Family::V4, message).unwrap();
        assert_eq!((told.source.to_string(), told.destination.to_string()), ("10.5.9.9".into(), "10.5.1.2".into()));

        let length = unreachable(&v6_packet(), &mut buffer).unwrap();
        let message = &buffer[..length];
        assert_eq!(&message[40..42], &[1, 0]);
        let pseudo = [0, 0, 0, (length - 40) as u8, 0, 0, 0, 58];
        assert_eq!(checksum(&[&message[8..40], &pseudo, &message[40..]]), [0, 0]);
        assert_eq!(&message[48..], &v6_packet()[..]);
        let told = addresses(Family::V6, message).unwrap();
        assert_eq!(
            (told.source.to_string(), told.destination.to_string()),
            ("fd00:5:9::9".into(), "fd00:5:1::2".into())
        );

        let long = [v6_packet(), vec![0; 3000]].concat();
        assert_eq!(unreachable(&long, &mut buffer), Some(1280));
    }

    #[test]
    fn nobody_is_told_of_an_error_a_fragment_or_a_crowd() {
        let v4_cases: [(usize, &[u8]); 7] = [
            (6, &[0, 1]),          // a later fragment
            (9, &[1]),             // ICMP of type 0x30
            (12, &[0, 0, 0, 0]),   // from nobody
            (12, &[224, 0, 0, 1]), // from a group
            (12, &[127, 0, 0, 1]),
            (16, &[224, 0, 0, 1]), // to a group
            (16, &[255; 4]),
        ];
        let mut buffer = [0; MAX_ANSWER];
        for (at, bytes) in v4_cases {
            let mut packet = v4_packet();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(unreachable(&packet, &mut buffer), None, "{bytes:?} at {at}");
        }
        let mut echo = v4_packet();
        echo[9] = ICMP;
        echo[20] = 8;
        assert!(unreachable(&echo, &mut buffer).is_some());
        for (at, bytes) in [(6, &[58][..]), (6, &[44]), (24, &[0xff]), (8, &[0xff])] {
            let mut packet = v6_packet();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(unreachable(&packet, &mut buffer), None, "{bytes:?} at {at}");
        }
    }

    #[test]
    fn damaged_packets_are_none() {
        let mut buffer = [0; MAX_ANSWER];
        for (family, whole, header) in [(Family::V4, v4_packet(), 20), (Family::V6, v6_packet(), 40)] {
            for length in 0..whole.len() {
                let part = &whole[..length];
                assert_eq!(addresses(family, part).is_some(), length >= header, "{family} {length}");
                let _ = unreachable(part, &mut buffer);
            }
            for first in 0..=255 {
                let mut packet = whole.clone();
                packet[0] = first;
                let _ = unreachable(&packet, &mut buffer);
                let known = addresses(family, &packet).is_some();
                assert!(!known || first >> 4 == if header == 20 { 4 } else { 6 }, "{first:#x}");
            }
        }
    }
}
