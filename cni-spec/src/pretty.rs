//! The layout of printed JSON: four spaces, no newline at the end, as the reference library prints results and errors.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// The printed form of one of our own answers.
pub(crate) fn text(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    // Writing to memory cannot fail, and our answers have string keys only, which leaves serde_json nothing to refuse.
    let written = value.serialize(&mut serializer);
    debug_assert!(written.is_ok());
    String::from_utf8(text).unwrap_or_default()
}
