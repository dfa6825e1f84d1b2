//! Netlink attributes (linux/netlink.h) in their wire form. Route netlink has its numbers in host order, nftables and
//! conntrack in network order.

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Bytes of attributes in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// No attributes yet.
    pub(crate) fn new() -> Self {
        Attributes::default()
    }

    /// What a message begins with before its attributes.
    pub(crate) fn after(header: &[u8]) -> Self {
        Attributes(header.to_vec())
    }

    /// Appends an attribute of plain bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.append(kind, value);
        self
    }

    /// Appends a string with its NUL.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends a number in host order.
    pub(crate) fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network order.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends attributes inside an attribute.
    pub(crate) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.nested_bytes(kind, &inner.0)
    }

    /// Appends attributes in their wire form inside an attribute.
    pub(crate) fn nested_bytes(mut self, kind: u16, inner: &[u8]) -> Self {
        self.append(kind | NLA_F_NESTED, inner);
        self
    }

    /// The bytes so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes so far.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    /// The number of bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, kind: u16, value: &[u8]) {
        // A value of 64 KiB or more has no representation; the kernel refuses the message with the length 0. Lists that could
        // grow so long are split by their encoder, and names are bounded before they get here.
        let length = u16::try_from(HEADER + value.len()).unwrap_or(0);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `bytes`, as (type, value), up to the first malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    })
}

/// The first attribute of type `kind`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The number, in network order, in the first attribute of type `kind`.
pub(crate) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.first_chunk().map(|value| u32::from_be_bytes(*value))
}

/// The string in the first attribute of type `kind`.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = find(bytes, kind)?;
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    value.get(..end).map(|value| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Attributes::new().number(7, 0x0102_0304).text(8, "abc");
        let bytes = Attributes::new().bytes(1, &[9, 9, 9]).nested(2, inner).finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find(&bytes, 1), Some(&[9, 9, 9][..]));
        let inner = find(&bytes, 2).unwrap();
        assert_eq!(number(inner, 7), Some(0x0102_0304));
        assert_eq!(text(inner, 8).as_deref(), Some("abc"));
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [&[0u8, 0, 0, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[4, 0], &[]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
