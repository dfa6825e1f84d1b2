//! Files of our own: replaced in one step, by way of a draft beside them.

use nix::errno::Errno;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, IntoInnerError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces a file by what `write` writes: whole or not at all, also over a power failure, and at no moment readable for others
/// than `mode` says. Directories that are missing are made, and may be entered by those who may read the file.
pub fn replace(path: &Path, mode: u32, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = draft(path);
    let replace = || {
        DirBuilder::new().recursive(true).mode(mode | (mode & 0o444) >> 2).create(directory)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        // The umask has no say, nor has whoever may have made the draft.
        file.set_permissions(Permissions::from_mode(mode))?;
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.into_inner().map_err(IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&draft, path)?;
        match File::open(directory)?.sync_all() {
            // A file system that has no such thing for directories.
            Err(error)
                if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
            {
                Ok(())
            }
            synced => synced,
        }
    };
    replace().inspect_err(|_| drop(fs::remove_file(&draft)))
}

/// What there is of a file that [`replace`] writes: itself, and the drafts of processes that were killed.
pub fn left_of(path: &Path) -> Vec<PathBuf> {
    let name = file_name(path);
    let is_draft = |found: &str| {
        let rest = found.strip_prefix('.').and_then(|found| found.strip_prefix(&name)?.strip_prefix('.'));
        rest.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|found| found == name || is_draft(found)))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Not a name that a container runtime reads.
fn draft(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.{}", file_name(path), std::process::id()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/file");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // One that somebody has left open to all.
        fs::create_dir(directory.path().join("new")).unwrap();
        fs::write(draft(&path), "old").unwrap();
        fs::set_permissions(draft(&path), Permissions::from_mode(0o666)).unwrap();
        replace(&path, 0o600, |out| out.write_all(b"first")).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("first", 0o600));
        let half = |out: &mut BufWriter<File>| out.write_all(b"half").and_then(|()| Err(io::Error::other("full")));
        replace(&path, 0o600, half).unwrap_err();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), left_of(&path)), ("first", vec![path.clone()]));
        for (mode_of_file, mode_of_directory) in [(0o600, 0o700), (0o644, 0o755)] {
            let path = directory.path().join(format!("{mode_of_file:o}/file"));
            replace(&path, mode_of_file, |_| Ok(())).unwrap();
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (mode_of_file, mode_of_directory));
        }
    }
}
