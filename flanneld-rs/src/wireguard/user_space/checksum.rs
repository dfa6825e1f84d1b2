//! The Internet checksum (RFC 1071).

/// The ones' complement sum of `bytes` and `start`, not folded yet. In the byte order of the network.
pub(super) fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut total = u128::from(start);
    let (words, rest) = bytes.as_chunks::<8>();
    // Eight bytes at a time: 2^16 is 1 modulo 2^16 - 1, so that wider words add up to the same.
    for word in words {
        total += u128::from(u64::from_be_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u128::from(u64::from_be_bytes(last));
    let folded = (total >> 64) + (total & u128::from(u64::MAX));
    let folded = (folded >> 64) + (folded & u128::from(u64::MAX));
    u64::from(fold(folded as u64))
}

/// The sum in 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The sum over the pseudo header of `length` bytes of `protocol` (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `addresses` are source and destination, of either family.
pub(super) fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses, u64::from(protocol) + length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
        assert_eq!(fold(sum(&bytes[4..], sum(&bytes[..4], 0))), 0xddf2);
        assert_eq!(fold(sum(&[0x12], 0)), 0x1200);
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).map(|byte: u8| byte.wrapping_mul(37)).collect();
            let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
            assert_eq!(fold(sum(&bytes, 0)), fold(words.sum()), "{length} bytes");
        }
    }
}
