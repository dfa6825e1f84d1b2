//! Kernel parameters under /proc/sys, in the network namespace of the calling thread.

use crate::{Error, Result};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";

/// The value of `key`, without the newline at its end.
///
/// A key is written with dots or with slashes as separators, as sysctl(8) takes it: the first separator decides, and the
/// other character stands for a dot inside a name (`net.ipv4.conf.eth0/100.forwarding` and
/// `net/ipv4/conf/eth0.100/forwarding` are the same).
pub fn get(key: &str) -> Result<String> {
    let path = path_of(key)?;
    read(&path).map_err(|error| Error::io(format!("reading sysctl {key}"), &error))
}

/// Sets `key` (see [`get`]) to `value`. Nothing is written if it has that value, so that a read-only /proc/sys in which
/// everything is right already is no failure.
pub fn set(key: &str, value: &str) -> Result<()> {
    let path = path_of(key)?;
    // Some keys can be written only; whatever is wrong with the path, the write will say it.
    if read(&path).is_ok_and(|present| present.split_whitespace().eq(value.split_whitespace())) {
        return Ok(());
    }
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| Error::io(format!("setting sysctl {key} to {value:?}"), &error))
}

/// Whether [`set`] would succeed, as far as that can be told without writing.
///
/// # Errors
/// What keeps `key` from being set, such as a read-only /proc/sys.
pub fn settable(key: &str, value: &str) -> Result<()> {
    let path = path_of(key)?;
    if read(&path).is_ok_and(|present| present.split_whitespace().eq(value.split_whitespace())) {
        return Ok(());
    }
    let opened = fs::OpenOptions::new().write(true).open(&path);
    opened.map(drop).map_err(|error| Error::io(format!("setting sysctl {key} to {value:?}"), &error))
}

/// Whether `key` (see [`get`]) exists; without IPv6, for example, nothing under net/ipv6 does.
pub fn exists(key: &str) -> bool {
    path_of(key).is_ok_and(|path| path.exists())
}

/// The names under `key` (see [`get`]), such as those of the devices under net/ipv4/conf; none if it does not exist.
pub fn names(key: &str) -> Vec<String> {
    let entries = path_of(key).ok().and_then(|path| fs::read_dir(path).ok());
    let names = entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim_end_matches('\n').to_owned())
}

fn path_of(key: &str) -> Result<PathBuf> {
    let separator = key.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    let mut path = PathBuf::from(ROOT);
    for name in key.split(separator) {
        let name = if separator == '.' { name.replace('/', ".") } else { name.to_owned() };
        if matches!(name.as_str(), "" | "." | "..") || name.contains('\0') {
            return Err(Error::new(format!("looking up sysctl {key:?}"), Errno::EINVAL)
                .because("a key is a sequence of names like net.ipv4.ip_forward"));
        }
        path.push(name);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_name_the_same_file() {
        let expected = Path::new("/proc/sys/net/ipv4/conf/eth0.100/forwarding");
        assert_eq!(path_of("net.ipv4.conf.eth0/100.forwarding").unwrap(), expected);
        assert_eq!(path_of("net/ipv4/conf/eth0.100/forwarding").unwrap(), expected);
    }

    #[test]
    fn no_key_leaves_the_tree() {
        for key in
            ["", "..", "net/../../etc/passwd", "/etc/passwd", "net//x", "net/", ".net", "net.ipv4.//.x", "net/./x"]
        {
            assert_eq!(path_of(key).unwrap_err().errno, Errno::EINVAL, "{key:?}");
        }
    }
}
