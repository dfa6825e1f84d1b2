//! This node's private key: made once, and kept over reboots, so that the other nodes need not learn another.

use ipam::own_file::{left_of, replace};
use ipam::regular_file::read_bounded;
use kernel::wireguard::{PublicKey, SecretKey};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the state directory.
const KEY_FILE: &str = "wireguard.key";
/// What a damaged key's name ends in.
const DAMAGED: &str = ".damaged";
/// Where Go flannel keeps its own, until the next reboot.
const FLANNEL_KEY_FILE: &str = "/run/flannel/wgkey";
/// More than a key and its line break.
const LONGEST: usize = 256;

/// The key pair of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// the secret part
    pub private_key: SecretKey,
    /// what the others know
    pub public_key: PublicKey,
}

impl Identity {
    /// Of a private key.
    pub fn new(private_key: SecretKey) -> Self {
        let secret = defguard_boringtun::x25519::StaticSecret::from(*private_key.bytes());
        let public_key = PublicKey(defguard_boringtun::x25519::PublicKey::from(&secret).to_bytes());
        Identity { private_key, public_key }
    }

    /// Reads the key from `file`, or else from `predecessor`'s file, or makes one; the file is there afterwards, with the mode
    /// 0600. A damaged file is put aside, since a key that others do not know yet is better than a daemon that never starts.
    ///
    /// # Errors
    /// The path and why it cannot be read or written.
    pub fn load(file: &Path, predecessor: Option<&Path>) -> Result<Self, String> {
        match read(file)? {
            Content::Key(key) => {
                restrict(file)?;
                return Ok(Identity::new(key));
            }
            Content::Damaged => {
                let aside = with_suffix(file, DAMAGED);
                tracing::error!(
                    "{} holds no WireGuard key; it is kept as {}, and this node gets a NEW IDENTITY",
                    file.display(),
                    aside.display()
                );
                fs::rename(file, &aside).map_err(|error| format!("renaming {}: {error}", file.display()))?;
            }
            Content::Absent => {}
        }
        if let Some(predecessor) = predecessor {
            match read(predecessor) {
                Ok(Content::Key(key)) => {
                    tracing::info!("taking over the WireGuard key of {}", predecessor.display());
                    write(file, &key)?;
                    return Ok(Identity::new(key));
                }
                Ok(Content::Damaged) => tracing::warn!("{} holds no WireGuard key", predecessor.display()),
                Ok(Content::Absent) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        let identity = Identity::new(SecretKey::private(rand::random()));
        write(file, &identity.private_key)?;
        tracing::info!("made a WireGuard key in {}, public part {}", file.display(), identity.public_key);
        Ok(identity)
    }

    /// Reads the key from the file that the operator names, as flannel does, or from our own place, where one of flannel's
    /// is taken over.
    ///
    /// # Errors
    /// See [`Identity::load`].
    pub fn of_node(named: Option<&Path>, state_dir: &Path) -> Result<Self, String> {
        match named {
            Some(file) => Identity::load(file, None),
            None => Identity::load(&key_file(state_dir), Some(Path::new(FLANNEL_KEY_FILE))),
        }
    }

    /// What there is on disk of the key in our own place; one that the operator has named is his.
    pub fn written(state_dir: &Path) -> Vec<PathBuf> {
        let file = key_file(state_dir);
        let mut found = left_of(&file);
        found.extend(Some(with_suffix(&file, DAMAGED)).filter(|aside| aside.exists()));
        found
    }
}

fn key_file(state_dir: &Path) -> PathBuf {
    state_dir.join(KEY_FILE)
}

enum Content {
    Absent,
    Damaged,
    Key(SecretKey),
}

fn read(path: &Path) -> Result<Content, String> {
    let bytes = match read_bounded(path, LONGEST) {
        Ok(Some((bytes, _))) => bytes,
        Ok(None) => return Ok(Content::Absent),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => return Ok(Content::Damaged),
        Err(error) => return Err(format!("reading the WireGuard key {}: {error}", path.display())),
    };
    let key = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    Ok(key.map_or(Content::Damaged, Content::Key))
}

fn write(path: &Path, key: &SecretKey) -> Result<(), String> {
    let written = replace(path, 0o600, |out| out.write_all(key.to_base64().as_bytes()));
    written.map_err(|error| format!("writing the WireGuard key {}: {error}", path.display()))
}

/// A key that was copied here by hand may be readable by others.
fn restrict(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("restricting the WireGuard key {}: {error}", path.display());
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!("{} was open to others (mode {:o}); it is not any more", path.display(), mode & 0o777);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let directory = directory();
        let file = directory.path().join("state/wireguard.key");
        let first = Identity::load(&file, None).unwrap();
        assert_eq!(Identity::load(&file, None).unwrap(), first);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        Identity::load(&file, None).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn flannels_key_is_taken_over_once() {
        let directory = directory();
        let (file, flannels) = (directory.path().join("key"), directory.path().join("wgkey"));
        // RFC 7748 section 6.1, Alice.
        let text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        fs::write(&flannels, text).unwrap();
        let identity = Identity::load(&file, Some(&flannels)).unwrap();
        assert_eq!(identity.public_key.to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        fs::remove_file(&flannels).unwrap();
        assert_eq!(Identity::load(&file, Some(&flannels)).unwrap(), identity, "after a reboot");
    }

    #[test]
    fn a_torn_file_is_put_aside() {
        for torn in ["", "dwdtCnMYpX08FsFyUbJmRd9ML4", "\u{0}\u{0}\u{0}"] {
            let directory = directory();
            let file = directory.path().join("key");
            fs::write(&file, torn).unwrap();
            let identity = Identity::load(&file, None).unwrap();
            assert_eq!(fs::read_to_string(directory.path().join("key.damaged")).unwrap(), torn);
            assert_eq!(Identity::load(&file, None).unwrap(), identity);
        }
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let error = Identity::load(Path::new("/proc/no-such/key"), None).unwrap_err();
        assert!(error.contains("/proc/no-such/key"), "{error}");
    }
}
