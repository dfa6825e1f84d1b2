//! A node and the files on it.

use super::remains::Remains;
use crate::runner::Runtime;
use crate::{Result, tools};
use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::Netns;
use std::fs;
use std::path::{Path, PathBuf};

/// A node, and the directory for the files of its plugins.
#[derive(Debug)]
pub struct Ground {
    /// runs plugins in the node's namespace
    pub runtime: Runtime,
    /// where all of them have their files
    pub files: PathBuf,
}

impl Ground {
    /// A fresh node with its files in `directory`, which is made.
    pub fn new(directory: &Path) -> Result<Self> {
        let files = directory.join("files");
        fs::create_dir_all(&files)?;
        let node = Netns::create()?;
        let mut netlink = Netlink::open_in(&node)?;
        let lo = netlink.link("lo")?.ok_or("no loopback device")?.index;
        netlink.set_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        let plugins = tools::plugin_directory(&directory.join("bin"))?;
        Ok(Ground { runtime: Runtime { plugins, cache: directory.join("results"), node }, files })
    }

    /// What is on the node now.
    pub fn remains(&self) -> Result<Remains> {
        Remains::on(&self.runtime.node, &self.files)
    }
}
