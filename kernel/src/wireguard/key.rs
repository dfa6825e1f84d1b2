//! Keys of 32 bytes and their text, base64 with padding (RFC 4648 section 4), as wg(8) and flannel write it.

use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// 32 bytes are 42 full digits, one with two bits to spare, and one of padding.
const DIGITS: usize = 43;

/// A text that is no key. It does not repeat the text, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKey;

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is no key of 32 bytes in base64")
    }
}

impl std::error::Error for BadKey {}

/// Who a node is to the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A private or a pre-shared key. It is shown to nobody, and has a text only where one is asked for by name.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        SecretKey(bytes)
    }

    /// Makes a private key of random bytes: some bits are fixed (RFC 7748 section 5), and the kernel stores them so.
    pub fn private(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0xf8;
        bytes[31] = bytes[31] & 0x7f | 0x40;
        SecretKey(bytes)
    }

    /// The secret itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret's text, for its file.
    pub fn to_base64(&self) -> String {
        encode(&self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        decode(text).map(PublicKey).ok_or(BadKey)
    }
}

impl FromStr for SecretKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        decode(text).map(SecretKey).ok_or(BadKey)
    }
}

fn encode(bytes: &[u8; 32]) -> String {
    let mut text: String = bytes
        .chunks(3)
        .flat_map(|group| {
            let bits =
                group.iter().enumerate().fold(0u32, |bits, (place, byte)| bits | u32::from(*byte) << (16 - 8 * place));
            [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize]))
        })
        .take(DIGITS)
        .collect();
    text.push('=');
    text
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == DIGITS)?;
    let mut bytes = [0; 32];
    let (mut bits, mut held, mut place) = (0u32, 0, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|letter| *letter == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            *bytes.get_mut(place)? = (bits >> held & 0xff) as u8;
            place += 1;
        }
    }
    // One key, one text: what the last digit has to spare is zero.
    (bits & 3 == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_wg_writes_them() {
        // RFC 7748 section 6.1, Alice's public key; its base64 by coreutils' base64(1).
        let bytes = [
            0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d, 0xbf,
            0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
        ];
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(PublicKey(bytes).to_string(), text);
        assert_eq!(text.parse(), Ok(PublicKey(bytes)));
        for byte in [0, 1, 0x55, 0xfe, 0xff] {
            let key = PublicKey([byte; 32]);
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        for wrong in [&text[..43], &text[1..], "", "=", &format!("{text}="), &text.replace("mo=", "mp="), "ä"] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(BadKey), "{wrong:?}");
        }
        assert_eq!(format!("{:?}", text.parse::<SecretKey>().unwrap()), "(secret)");
    }
}
