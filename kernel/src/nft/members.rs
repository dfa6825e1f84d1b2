//! What is in a set of somebody else's, ordered to be looked up in.

use crate::netlink::attribute::{attributes, find, number, text};
use std::collections::BTreeMap;

/// NFT_SET_ELEM_CATCHALL.
const ANY_OTHER: u32 = 2;

/// The elements of a set, in its own form.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// NFTA_SET_FLAGS
    pub(super) flags: u32,
    /// length of the key in bytes
    pub(super) length: usize,
    /// how many there are, with the ends of intervals
    pub(super) count: usize,
    /// the attributes of each by its key, and whether an interval starts there: its end comes before the start of the next
    elements: BTreeMap<(Vec<u8>, bool), Vec<u8>>,
    /// the one for every other key
    any_other: Option<Vec<u8>>,
    /// one is a range of several fields, which is not looked into
    ranges: bool,
}

impl Members {
    /// A set without elements, by its attributes.
    pub(super) fn described(set: &[u8]) -> Self {
        let length = number(set, 5).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        Members { flags: number(set, 3).unwrap_or(0), length, ..Members::default() }
    }

    /// Takes in an element, by its attributes.
    pub(super) fn add(&mut self, element: &[u8]) {
        self.count += 1;
        let flags = number(element, 3).unwrap_or(0);
        // NFTA_SET_ELEM_KEY_END
        self.ranges |= find(element, 10).is_some();
        if flags & ANY_OTHER != 0 {
            self.any_other = Some(element.to_vec());
            return;
        }
        let key = find(element, 1).and_then(|data| find(data, 1)).unwrap_or_default().to_vec();
        self.elements.entry((key, flags & super::encode::ELEMENT_END == 0)).or_insert_with(|| element.to_vec());
    }

    /// The element that has this key. None: it is not known whether there is one.
    pub(super) fn find(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        if self.ranges {
            return None;
        }
        let wanted = (key.to_vec(), true);
        let found = if self.flags & super::encode::SET_INTERVAL == 0 {
            self.elements.get(&wanted)
        } else {
            self.elements.range(..=wanted).next_back().filter(|((_, starts), _)| *starts).map(|(_, element)| element)
        };
        let found = found.or(self.any_other.as_ref());
        if found.is_some_and(|element| depends_on_others(element)) {
            return None;
        }
        Some(found.map(Vec::as_slice))
    }
}

/// Whether an element has expressions of its own by which it may be none for this packet, as a limit.
fn depends_on_others(element: &[u8]) -> bool {
    // NFTA_SET_ELEM_EXPR, or several in NFTA_SET_ELEM_EXPRESSIONS.
    let own = find(element, 7).into_iter().chain(attributes(find(element, 11).unwrap_or_default()).map(|(_, own)| own));
    own.filter_map(|expression| text(expression, 1)).any(|name| !matches!(name.as_str(), "counter" | "last"))
}
