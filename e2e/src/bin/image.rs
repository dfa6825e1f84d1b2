//! `make image`: the container image, for `ctr image import`, `podman load`, or a registry.

use clap::Parser;
use e2e::Result;
use e2e::image::{Image, Platform};
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a container image with the daemon and the CNI executable, as an OCI archive.
#[derive(Parser)]
struct Command {
    /// Full name of the image
    #[arg(long, default_value = concat!("localhost/flanneld-rs:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// The archive to be written
    #[arg(long)]
    output: PathBuf,
    /// Where the static executables for a processor are, such as amd64=dist; may be given several times
    #[arg(long, required = true, value_parser = platform)]
    platform: Vec<(String, PathBuf)>,
}

fn platform(text: &str) -> std::result::Result<(String, PathBuf), &'static str> {
    let (architecture, directory) = text.split_once('=').ok_or("not <processor>=<directory>")?;
    Ok((architecture.into(), directory.into()))
}

fn main() -> ExitCode {
    match write(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write(command: &Command) -> Result<()> {
    let platforms =
        command.platform.iter().map(|(architecture, directory)| Platform::in_directory(architecture, directory));
    let image = Image::of_product(&command.name, platforms.collect::<Result<_>>()?);
    let archive = image.archive()?;
    std::fs::write(&command.output, &archive).map_err(|error| format!("{}: {error}", command.output.display()))?;
    println!("{}: {}, {} bytes", command.output.display(), command.name, archive.len());
    Ok(())
}
