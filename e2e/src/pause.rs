//! An image with nothing in it but a program that does nothing: what a pod sandbox runs.

use crate::Result;
use crate::image::{Image, Platform};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name.
pub const IMAGE: &str = "localhost/pause:e2e";

/// Builds the program and writes the image's archive into `directory`; the path of the archive.
pub fn image(directory: &Path) -> Result<PathBuf> {
    let executable = directory.join("pause");
    let output = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/pause.rs"))
        .arg("-o")
        .arg(&executable)
        .output()?;
    if !output.status.success() {
        return Err(format!("rustc: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let image = Image {
        name: IMAGE.into(),
        entrypoint: "/pause".into(),
        annotations: Vec::new(),
        platforms: vec![Platform {
            architecture: ARCHITECTURE.into(),
            executables: vec![("pause".into(), fs::read(&executable)?)],
        }],
    };
    let archive = directory.join("pause.tar");
    fs::write(&archive, image.archive()?)?;
    Ok(archive)
}

/// This machine's, by Go's name.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
