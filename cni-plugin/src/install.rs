//! `cni-plugin install` and `uninstall`: the executable and its names in a directory of plugins.

use crate::{catalogue, leftovers};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The name of the executable itself; all others but one are links to it.
const EXECUTABLE: &str = "cni-plugin";

/// A copy of the executable, and no link: kube-flannel's manifest installs its own plugin with `cp -f`, which would write
/// through a link and leave that one plugin under all our names.
const COPIED: &str = "flannel";

/// The executable of this process.
const SELF: &str = "/proc/self/exe";

/// How the command is called.
const USAGE: &str = "usage: cni-plugin install --bin-dir <directory>\n       \
     cni-plugin uninstall --bin-dir <directory> [--state-dir <directory> [--dry-run]]";

/// Carries out a command line, if it is one: without arguments we are called as a plugin.
pub(crate) fn command(mut arguments: impl Iterator<Item = OsString>) -> Option<Result<(), String>> {
    let verb = arguments.next()?;
    let rest: Vec<OsString> = arguments.collect();
    let (rest, is_dry) = match rest.split_last() {
        Some((last, rest)) if last == "--dry-run" => (rest, true),
        _ => (rest.as_slice(), false),
    };
    let (directory, state) = match rest {
        [flag, directory, rest @ ..] if flag == "--bin-dir" && !directory.is_empty() => match rest {
            [] => (Path::new(directory), None),
            [flag, state] if flag == "--state-dir" && !state.is_empty() => {
                (Path::new(directory), Some(Path::new(state)))
            }
            _ => return Some(Err(USAGE.into())),
        },
        _ => return Some(Err(USAGE.into())),
    };
    // A script's variable with its quotes, or without a value: a place below wherever that runs is hardly meant.
    if !directory.is_absolute() {
        return Some(Err(format!("--bin-dir {}: not an absolute path", directory.display())));
    }
    Some(match (verb.to_str(), state, is_dry) {
        (Some("install"), None, false) => install(directory),
        (Some("uninstall"), Some(state), true) => leftovers::check(state),
        // Without the plugins no pod could be removed any more.
        (Some("uninstall"), Some(state), false) => leftovers::remove(state).and_then(|()| uninstall(directory)),
        (Some("uninstall"), None, false) => uninstall(directory),
        _ => Err(USAGE.into()),
    })
}

/// Puts the executable and a link for each of its names into `directory`. Each appears by a rename: whoever runs a plugin
/// meanwhile runs the former one or ours, and never none or half of one. What had one of the names before is kept beside it
/// as `<name>.bak`, the first time.
fn install(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory).map_err(failed("making", directory))?;
    // The copy first: an installation that is broken off leaves it equal to what the next one brings, or to what is there.
    for name in [COPIED, EXECUTABLE].into_iter().chain(catalogue::names().filter(|name| *name != COPIED)) {
        let (path, draft) = (directory.join(name), draft(directory, name));
        if name != EXECUTABLE && !is_ours(&path) {
            keep(&path).map_err(failed("keeping a copy of", &path))?;
        }
        let written = if matches!(name, COPIED | EXECUTABLE) {
            copy(Path::new(SELF), &draft)
        } else {
            remove(&draft).and_then(|()| symlink(EXECUTABLE, &draft))
        };
        written.map_err(failed("writing", &draft))?;
        fs::rename(&draft, &path).map_err(failed("installing", &path))?;
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("writing", directory))
}

/// Removes the executable and its other names, and puts what had their names before back into its place.
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

/// Whether a plugin is a link to our executable, or a copy of it or of this process's.
fn is_ours(plugin: &Path) -> bool {
    match fs::read_link(plugin) {
        Ok(target) => target == Path::new(EXECUTABLE),
        Err(_) => [Path::new(SELF), &plugin.with_file_name(EXECUTABLE)].into_iter().any(|ours| equal(plugin, ours)),
    }
}

fn equal(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| path.metadata().map(|metadata| metadata.len()).ok();
    length(one).is_some() && length(one) == length(other) && fs::read(one).ok() == fs::read(other).ok()
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
        assert_eq!(executable, fs::read(SELF).unwrap());
        assert!(!bin.join("flannel.bak").exists(), "our own copy is nobody else's");
        call(&["uninstall", "--bin-dir", bin.to_str().unwrap()]).unwrap().unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["bridge", "dhcp", "ptp"]);
        assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "somebody else's");
        assert_eq!(fs::read_link(bin.join("ptp")).unwrap(), Path::new("/nix/ptp"));
    }

    /// kube-flannel's init container does this, and a newer version of us is installed beside the copy of the older one.
    #[test]
    fn a_plugin_written_over_ours_is_the_only_one_that_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, directory) = (dir.path(), dir.path().to_str().unwrap());
        for older in [EXECUTABLE, COPIED] {
            fs::write(bin.join(older), "an older version of ours").unwrap();
        }
        call(&["install", "--bin-dir", directory]).unwrap().unwrap();
        assert!(!bin.join("flannel.bak").exists());
        // As cp does: into whatever is there.
        fs::write(bin.join("flannel"), "Go flannel's").unwrap();
        assert!(equal(&bin.join(EXECUTABLE), Path::new(SELF)));
        call(&["uninstall", "--bin-dir", directory]).unwrap().unwrap();
        assert_eq!(fs::read_to_string(bin.join("flannel")).unwrap(), "Go flannel's");
        assert_eq!(fs::read_dir(bin).unwrap().count(), 1);
    }

    #[test]
    fn a_relative_directory_is_refused() {
        for verb in ["install", "uninstall"] {
            let refused = call(&[verb, "--bin-dir", "\"/opt/cni/bin\""]).unwrap().unwrap_err();
            assert!(refused.contains("not an absolute path"), "{refused}");
        }
    }

    #[test]
    fn what_is_no_command_says_how_it_goes() {
        assert!(call(&[]).is_none());
        for words in [
            &["install"][..],
            &["install", "--bin-dir"],
            &["install", "--bin-dir", "/x", "--dry-run"],
            &["uninstall", "--bin-dir", "/x", "--dry-run"],
            &["remove", "--bin-dir", "/x"],
            &["--help"],
        ] {
            assert!(call(words).unwrap().unwrap_err().starts_with("usage"), "{words:?}");
        }
    }
}
