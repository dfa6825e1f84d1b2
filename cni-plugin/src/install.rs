//! `cni-plugin install` and `uninstall`: the executable and its names in a directory of plugins.

use crate::catalogue;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The name of the executable itself; all others are links to it.
const EXECUTABLE: &str = "cni-plugin";

/// How the command is called.
const USAGE: &str =
    "usage: cni-plugin install --bin-dir <directory>\n       cni-plugin uninstall --bin-dir <directory>";

/// Carries out a command line, if it is one: without arguments we are called as a plugin.
pub(crate) fn command(mut arguments: impl Iterator<Item = OsString>) -> Option<Result<(), String>> {
    let verb = arguments.next()?;
    let rest: Vec<OsString> = arguments.collect();
    let directory = match rest.as_slice() {
        [flag, directory] if flag == "--bin-dir" && !directory.is_empty() => PathBuf::from(directory),
        _ => return Some(Err(USAGE.into())),
    };
    Some(match verb.to_str() {
        Some("install") => install(&directory),
        Some("uninstall") => uninstall(&directory),
        _ => Err(USAGE.into()),
    })
}

/// Puts the executable and a link for each of its names into `directory`. Each appears by a rename: whoever runs a plugin
/// meanwhile runs the former one or ours, and never none or half of one. What had one of the names before is kept beside it
/// as `<name>.bak`, the first time.
fn install(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory).map_err(failed("making", directory))?;
    let (target, draft) = (directory.join(EXECUTABLE), draft(directory, EXECUTABLE));
    copy(Path::new("/proc/self/exe"), &draft).map_err(failed("writing", &draft))?;
    fs::rename(&draft, &target).map_err(failed("installing", &target))?;
    for name in catalogue::names() {
        let link = directory.join(name);
        if is_ours(&link) {
            continue;
        }
        keep(&link).map_err(failed("keeping a copy of", &link))?;
        let draft = self::draft(directory, name);
        remove(&draft).and_then(|()| symlink(EXECUTABLE, &draft)).map_err(failed("writing", &draft))?;
        fs::rename(&draft, &link).map_err(failed("installing", &link))?;
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("writing", directory))
}

/// Removes the executable and the links that lead to it, and puts what had their names before back into its place.
fn uninstall(directory: &Path) -> Result<(), String> {
    for name in catalogue::names() {
        let link = directory.join(name);
        if !is_ours(&link) {
            continue;
        }
        match fs::rename(backup(&link), &link) {
            Err(error) if error.kind() == ErrorKind::NotFound => remove(&link).map_err(failed("removing", &link))?,
            restored => restored.map_err(failed("restoring", &link))?,
        }
    }
    let target = directory.join(EXECUTABLE);
    remove(&target).map_err(failed("removing", &target))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(to)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.sync_all()
}

/// Gives a file of another origin a second name. The first one stays, so that there is no moment without a plugin; a copy
/// from an earlier installation is the original and stays too.
fn keep(path: &Path) -> io::Result<()> {
    match fs::hard_link(path, backup(path)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => Ok(()),
        kept => kept,
    }
}

fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".bak");
    name.into()
}

/// Runtimes take names with a dot in front for no plugin; a second run uses it again.
fn draft(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.{}", std::process::id()))
}

fn is_ours(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == Path::new(EXECUTABLE))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn failed(action: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let what = format!("{action} {}", path.display());
    move |error| format!("{what}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Option<Result<(), String>> {
        command(words.iter().map(OsString::from))
    }

    #[test]
    fn install_keeps_what_was_there_and_uninstall_brings_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("opt/cni/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("bridge"), "somebody else's").unwrap();
        symlink("/nix/ptp", bin.join("ptp")).unwrap();
        fs::write(bin.join("dhcp"), "not ours").unwrap();
        for _twice in 0..2 {
            call(&["install", "--bin-dir", bin.to_str().unwrap()]).unwrap().unwrap();
            assert!(catalogue::names().all(|name| is_ours(&bin.join(name))));
            assert_eq!(fs::read_to_string(bin.join("bridge.bak")).unwrap(), "somebody else's");
        }
        let executable = fs::read(bin.join("bridge")).unwrap();
        assert_eq!(executable, fs::read("/proc/self/exe").unwrap());
        call(&["uninstall", "--bin-dir", bin.to_str().unwrap()]).unwrap().unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["bridge", "dhcp", "ptp"]);
        assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "somebody else's");
        assert_eq!(fs::read_link(bin.join("ptp")).unwrap(), Path::new("/nix/ptp"));
    }

    #[test]
    fn what_is_no_command_says_how_it_goes() {
        assert!(call(&[]).is_none());
        for words in [&["install"][..], &["install", "--bin-dir"], &["remove", "--bin-dir", "/x"], &["--help"]] {
            assert!(call(words).unwrap().unwrap_err().starts_with("usage"), "{words:?}");
        }
    }
}
