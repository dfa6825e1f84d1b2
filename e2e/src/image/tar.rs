//! Tar files (POSIX ustar) of regular files and directories: all of root's, and of no time, so that they can be made again.

use crate::Result;

/// Length of a header, and what contents are filled up to.
const BLOCK: usize = 512;

/// A tar file in the making.
#[derive(Debug, Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// Adds a file under a relative path.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(path, mode, content.len(), b'0')?;
        self.0.extend_from_slice(content);
        self.fill();
        Ok(())
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, path: &str) -> Result<()> {
        self.header(&format!("{path}/"), 0o755, 0, b'5')
    }

    /// The whole file: two empty blocks are its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8) -> Result<()> {
        if path.len() > 100 || size >= 1 << 33 {
            return Err(format!("{path}: no room in a tar header for its name or its {size} bytes").into());
        }
        // Name, mode, owner, group, size, time, sum, kind, name of a link, magic; the rest of the block stays empty.
        let fields = |sum: &str| {
            format!(
                "{path:\0<100}{mode:07o}\0{0:07o}\0{0:07o}\0{size:011o}\0{0:011o}\0{sum}{kind}{1:\0<100}ustar\x0000",
                0,
                "",
                kind = char::from(kind)
            )
        };
        // The sum of all bytes is taken with spaces in its own place.
        let sum: u32 = fields("        ").bytes().map(u32::from).sum();
        self.0.extend_from_slice(fields(&format!("{sum:06o}\0 ")).as_bytes());
        self.fill();
        Ok(())
    }

    fn fill(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tar itself is the judge")]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = Tar::default();
        tar.directory("bin").unwrap();
        tar.file("bin/tool", 0o755, &[7; 700]).unwrap();
        tar.file("empty", 0o644, b"").unwrap();
        assert!(tar.file(&"x".repeat(101), 0o644, b"").is_err());
        let archive = dir.path().join("a.tar");
        std::fs::write(&archive, tar.finish()).unwrap();
        let run = |args: &[&str]| {
            let output =
                Command::new("tar").args(args).arg("-f").arg(&archive).arg("-C").arg(dir.path()).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let listed = run(&["--numeric-owner", "--utc", "-tv"]);
        let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..2], ["drwxr-xr-x", "0/0"]);
        assert_eq!(lines[1], ["-rwxr-xr-x", "0/0", "700", "1970-01-01", "00:00", "bin/tool"]);
        assert_eq!(lines[2], ["-rw-r--r--", "0/0", "0", "1970-01-01", "00:00", "empty"]);
        run(&["-x"]);
        assert_eq!(std::fs::read(dir.path().join("bin/tool")).unwrap(), [7; 700]);
    }
}
