//! A list of objects, cut into them while it arrives: one from the server's memory comes in one piece, of ten thousand bytes for
//! each node, and only one of them is kept at a time.

use super::connection::{Answer, Failure, MAX_OBJECT, parse};
use serde::Deserialize;

/// What stands beside the objects.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Frame {
    metadata: Metadata,
}

/// Of which moment a list is, and how it goes on.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) resource_version: String,
    pub(super) r#continue: Option<String>,
}

/// Reads a whole list, and hands out each object as it comes.
///
/// # Errors
/// Those of the answer, and of `object`; `Away` for what is no list.
pub(super) async fn read(
    mut answer: Answer,
    mut object: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Metadata, Failure> {
    let mut cut = Cut::default();
    while let Some(part) = answer.part().await? {
        cut.take(&part, &mut object)?;
    }
    cut.end()
}

/// How far a list has been read.
#[derive(Default)]
pub(super) struct Cut {
    /// the text without the objects
    frame: Vec<u8>,
    /// the beginning of the object that comes
    object: Vec<u8>,
    /// how many brackets and braces are open
    depth: usize,
    /// the second of them is the list's own
    listing: bool,
    /// inside a string
    quoted: bool,
    /// behind a backslash in it
    escaped: bool,
}

impl Cut {
    /// Takes in the next part of the text, wherever it ends.
    pub(super) fn take(
        &mut self,
        part: &[u8],
        object: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for byte in part {
            let before = self.depth;
            self.step(*byte)?;
            match (self.listing, before.max(self.depth)) {
                (true, 3..) => self.object.push(*byte),
                (true, 2) if *byte == b',' && !self.quoted => {}
                _ => self.frame.push(*byte),
            }
            if self.object.len().max(self.frame.len()) > MAX_OBJECT {
                return Err(Failure::Away(format!("an object has more than {MAX_OBJECT} bytes")));
            }
            if self.listing && (before, self.depth) == (3, 2) {
                object(&self.object)?;
                self.object.clear();
            }
        }
        Ok(())
    }

    /// Keeps account of where in the text we are (RFC 8259); whether it is right, the parsers say.
    fn step(&mut self, byte: u8) -> Result<(), Failure> {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ if self.quoted => {}
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth == 2 {
                    self.listing = byte == b'[';
                }
            }
            b'}' | b']' => {
                let closed = self.depth.checked_sub(1);
                self.depth = closed.ok_or_else(|| Failure::Away("the answer is no list".into()))?;
                self.listing &= self.depth > 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// What stands beside the objects, once the text has come to its end.
    pub(super) fn end(self) -> Result<Metadata, Failure> {
        let list = parse::<Frame>(&self.frame)?.metadata;
        // Without it there is no going on; and anything else that is JSON would be the list of a cluster without nodes.
        if list.resource_version.is_empty() {
            return Err(Failure::Away("the answer is no list: it has no resourceVersion".into()));
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects, and of which moment the list is.
    fn cut(parts: &[&[u8]]) -> Result<(Vec<String>, String), Failure> {
        let (mut cut, mut found) = (Cut::default(), Vec::new());
        let mut object = |text: &[u8]| {
            found.push(String::from_utf8_lossy(text).into_owned());
            Ok(())
        };
        parts.iter().try_for_each(|part| cut.take(part, &mut object))?;
        let version = cut.end()?.resource_version;
        Ok((found, version))
    }

    const OBJECTS: [&str; 3] = [r#"{"a":"]}\"," ,"b":[[{}]]}"#, "{ }", r#"{"c":"\\","d":[1,"[{"]}"#];

    #[test]
    fn a_list_is_cut_into_its_objects_wherever_its_parts_end() {
        let objects = OBJECTS.join(", ");
        for text in [
            format!(r#"{{"kind":"L[i{{st","metadata":{{"resourceVersion":"7","x":[[1]]}},"items":[ {objects} ]}}"#),
            format!(r#"{{"items":[{objects}],"metadata":{{"resourceVersion":"7"}}}}"#),
        ] {
            for end in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(end);
                let (found, version) = cut(&[first, second]).unwrap();
                assert_eq!((found, version.as_str()), (OBJECTS.map(String::from).to_vec(), "7"), "{text} at {end}");
                assert!(end == text.len() || cut(&[first]).is_err(), "{text}: nothing after {end}");
            }
        }
        for empty in ["[]", "null"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":{empty}}}"#);
            assert_eq!(cut(&[text.as_bytes()]).unwrap(), (Vec::new(), "7".into()));
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_what_has_no_end_is_not_kept() {
        for text in ["", "}", "{}", "[{}]", "{}}", r#"{"items":[{]}"#, r#"{"items":["#, r#"{"items":[{}"#] {
            assert!(matches!(cut(&[text.as_bytes()]), Err(Failure::Away(_))), "{text}");
        }
        let endless = [b'['; 1 << 16];
        for start in [&b"{\"items\":["[..], b"{\"x\":\"", b""] {
            let parts: Vec<&[u8]> = std::iter::once(start).chain(std::iter::repeat_n(&endless[..], 65)).collect();
            assert!(matches!(cut(&parts), Err(Failure::Away(_))), "{}", String::from_utf8_lossy(start));
        }
    }
}
