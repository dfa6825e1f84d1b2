//! Every sample under `conf/` is what the daemon or the plugin really reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::files::Files;
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::options::Options;
use std::fs;
use std::path::{Path, PathBuf};

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

#[test]
fn every_file_is_known_and_parses() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(conf()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        if name.starts_with("net-conf.") {
            NetworkConfig::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        } else if name.ends_with(".conflist") {
            let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(list["name"].is_string() && !list["plugins"].as_array().unwrap().is_empty(), "{name}");
        } else if name.ends_with(".service") {
            let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
            Options::parse_go_style(start.split(' ').map(String::from))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        } else {
            panic!("{name} is read by no test");
        }
        seen.push(name);
    }
    assert!(seen.len() >= 5, "{seen:?}");
}

#[test]
fn the_daemon_installs_the_sample_conflist() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files { subnet_file: ipam::subnet_env::DEFAULT_PATH.into(), conf_dir: Some(dir.path().into()) };
    files.install_conflist().unwrap();
    let installed = fs::read_to_string(dir.path().join("10-flannel.conflist")).unwrap();
    assert_eq!(installed, fs::read_to_string(conf().join("10-flannel.conflist")).unwrap());
    // Nothing else is left in a directory that the runtime reads.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
