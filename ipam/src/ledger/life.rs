//! What the life of an attachment hangs on: the boot in which it was made, and the network namespace of its sandbox.

use super::machine;
use kernel::netns::Netns;
use std::path::{Path, PathBuf};

/// Longest path of a namespace that is recorded, in bytes: it has to fit the index.
const LONGEST_PATH: usize = 512;

/// Between the parts of the text, none of which but the path, the last one, contains it.
const SEPARATOR: char = ';';

/// As ADD found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// the boot's id
    pub(super) boot: String,
    /// the sandbox's namespace, if there was one
    pub(super) sandbox: Option<Sandboxed>,
}

/// A namespace, by a name that no other has in this boot and the path that the runtime gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sandboxed {
    pub(super) name: String,
    path: PathBuf,
}

impl Life {
    /// Of an attachment that is being made in the namespace at `netns`. None if the boot has no id: then nothing can be
    /// told later on. A path that leads to no namespace, as with runtimes of virtual machines, is no failure.
    pub(crate) fn of(netns: &Path) -> Option<Self> {
        let is_short = netns.to_str().is_some_and(|path| path.len() <= LONGEST_PATH);
        let name = is_short.then(|| name_of(netns)).flatten();
        let boot = machine::boot_id()?;
        Some(Life { boot, sandbox: name.map(|name| Sandboxed { name, path: netns.to_owned() }) })
    }

    /// As it is recorded.
    pub(super) fn text(&self) -> String {
        let (name, path) =
            self.sandbox.as_ref().map_or(("", Path::new("")), |sandbox| (&sandbox.name, sandbox.path.as_path()));
        format!("{}{SEPARATOR}{name}{SEPARATOR}{}", self.boot, path.display())
    }

    /// Reads what [`Life::text`] has written.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, SEPARATOR);
        let (boot, name, path) = (parts.next()?, parts.next()?, parts.next()?);
        let sandbox = (!name.is_empty()).then(|| Sandboxed { name: name.to_owned(), path: path.into() });
        (!boot.is_empty()).then(|| Life { boot: boot.to_owned(), sandbox })
    }
}

impl Sandboxed {
    /// Whether the namespace is where the runtime had it: then it lives. It may live elsewhere all the same.
    pub(super) fn is_in_place(&self) -> bool {
        name_of(&self.path).is_some_and(|name| name == self.name)
    }
}

fn name_of(path: &Path) -> Option<String> {
    Netns::open(path).and_then(|netns| netns.name()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written() {
        let path = "/run/netns/odd;name".into();
        let sandbox = Some(Sandboxed { name: "netns-17".into(), path });
        for sandbox in [sandbox, None] {
            let life = Life { boot: "4711".into(), sandbox };
            assert_eq!(Life::parse(&life.text()), Some(life));
        }
        for text in ["", "a", "a;b", ";b;c"] {
            assert_eq!(Life::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_namespace_is_told_from_its_successor_at_the_same_path() {
        let first = Netns::create().expect("this test makes network namespaces: run it as root");
        let (path, directory) = (first.path(), tempfile::tempdir().unwrap());
        let pinned = directory.path().join("pod");
        first.pin(&pinned).unwrap();
        let life = Life::of(&pinned).unwrap();
        let direct = Life::of(&path).unwrap();
        assert!(life.sandbox.as_ref().unwrap().is_in_place());
        assert_eq!(life.sandbox.as_ref().unwrap().name, direct.sandbox.as_ref().unwrap().name);
        Netns::unpin(&pinned).unwrap();
        assert!(!life.sandbox.as_ref().unwrap().is_in_place());
        drop(first);
        // The kernel gives inode numbers of namespaces again at once.
        let second = Netns::create().unwrap();
        second.pin(&pinned).unwrap();
        let still = life.sandbox.as_ref().unwrap().is_in_place();
        Netns::unpin(&pinned).unwrap();
        assert!(!still);
        assert_eq!(Life::of(Path::new("/etc/passwd")).unwrap().sandbox, None);
        assert_eq!(Life::of(&directory.path().join("x".repeat(600))).unwrap().sandbox, None);
    }
}
