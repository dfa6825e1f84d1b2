//! The content of a reservation file.

use super::disk;
use crate::error::IpamError;
use cni_spec::AttachmentId;
use std::fmt;
use std::path::Path;

/// Between container id and interface name.
const SEPARATOR: &str = "\r\n";

/// Largest content that is read, in bytes.
const LONGEST: usize = 1024;

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// the container
    pub container_id: String,
    /// its interface; none in the files of plugins before 0.7
    pub ifname: Option<String>,
}

impl Holder {
    /// `id` as a holder.
    ///
    /// # Errors
    /// `Name` if it could not be told apart again on reading.
    pub(super) fn of(id: &AttachmentId) -> Result<Self, IpamError> {
        let holder = Holder { container_id: id.container_id.clone(), ifname: Some(id.ifname.clone()) };
        match parse(holder.text().as_bytes()) {
            Some(read) if read == holder => Ok(holder),
            _ => Err(IpamError::Name(format!(
                "container id {:?} with interface {:?} cannot be recorded: both must be set, short, and without spaces",
                id.container_id, id.ifname
            ))),
        }
    }

    /// Whether `id` may release the address. A holder without an interface is every interface of its container.
    pub fn is(&self, id: &AttachmentId) -> bool {
        self.container_id == id.container_id && self.ifname.as_ref().is_none_or(|ifname| *ifname == id.ifname)
    }

    /// Whether a device whose alias is `mark` is this attachment's: a mark ends in `:<container id>/<ifname>`.
    pub(super) fn is_marked(&self, mark: &str) -> bool {
        let named = mark.rsplit_once(':').and_then(|(_, attachment)| attachment.split_once('/'));
        named.is_some_and(|(container_id, ifname)| {
            self.container_id == container_id && self.ifname.as_ref().is_none_or(|own| own == ifname)
        })
    }

    pub(crate) fn text(&self) -> String {
        match &self.ifname {
            Some(ifname) => format!("{}{SEPARATOR}{ifname}", self.container_id),
            None => self.container_id.clone(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.container_id)?;
        self.ifname.iter().try_for_each(|ifname| write!(f, " ({ifname})"))
    }
}

/// What is to be found under an address's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// no file
    Absent,
    /// something other than a file: not ours to judge or to replace
    Foreign,
    /// a file without a sensible holder: what a crash or a full disk leaves
    Nobodys,
    /// a reservation
    Of(Holder),
}

impl Content {
    pub(super) fn holder(self) -> Option<Holder> {
        match self {
            Content::Of(holder) => Some(holder),
            Content::Absent | Content::Foreign | Content::Nobodys => None,
        }
    }
}

pub(super) fn read(file: &Path) -> Result<Content, IpamError> {
    match disk::kind(file)? {
        None => Ok(Content::Absent),
        Some(kind) if !kind.is_file() => Ok(Content::Foreign),
        Some(_) => Ok(match disk::read(file, LONGEST)? {
            None => Content::Absent,
            Some(content) => parse(&content).map_or(Content::Nobodys, Content::Of),
        }),
    }
}

/// Reads `<container id>\r\n<ifname>`, or a container id alone. Control characters are what a crash leaves (a file system
/// pads with zeros) or half a separator.
pub(crate) fn parse(content: &[u8]) -> Option<Holder> {
    let text = str::from_utf8(content).ok().filter(|text| text.len() <= LONGEST)?.trim_matches([' ', '\n']);
    let (container_id, ifname) = match text.split_once(SEPARATOR) {
        Some((container_id, ifname)) => (container_id, Some(ifname)),
        None => (text, None),
    };
    let is_word = |word: &str| !word.is_empty() && !word.chars().any(|c| c.is_control() || c.is_whitespace());
    (is_word(container_id) && ifname.is_none_or(is_word))
        .then(|| Holder { container_id: container_id.to_owned(), ifname: ifname.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(container_id: &str, ifname: Option<&str>) -> Option<Holder> {
        Some(Holder { container_id: container_id.into(), ifname: ifname.map(Into::into) })
    }

    #[test]
    fn reads_what_plugins_write() {
        assert_eq!(parse(b"dead1\r\neth0"), holder("dead1", Some("eth0")));
        assert_eq!(parse(b"dead1\r\neth0\n"), holder("dead1", Some("eth0")));
        assert_eq!(parse(b"dead1"), holder("dead1", None));
        assert_eq!(parse(b"dead1\n"), holder("dead1", None));
    }

    #[test]
    fn what_a_crash_leaves_is_nobodys() {
        for content in [
            &b""[..],
            b" \n",
            b"\0\0\0\0",
            b"dead1\r",
            b"dead1\r\n",
            b"\r\neth0",
            b"dead1\r\net\0\0",
            b"\xff\xfe",
            b"a b",
            b"a\r\nb\r\nc",
        ] {
            assert_eq!(parse(content), None, "{content:?}");
        }
        assert_eq!(parse(&[b'a'; LONGEST + 1]), None);
    }

    #[test]
    fn refuses_ids_that_would_read_back_differently() {
        for (container_id, ifname) in [("", "eth0"), ("c", ""), ("c\r\nx", "eth0"), ("c d", "eth0"), ("c", "e\nth0")] {
            let id = AttachmentId { container_id: container_id.into(), ifname: ifname.into() };
            assert!(Holder::of(&id).is_err(), "{id:?}");
        }
    }
}
