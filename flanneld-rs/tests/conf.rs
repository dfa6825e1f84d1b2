//! Every sample under `conf/` is what the daemon or the plugin really reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::files::Files;
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::options::Options;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
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
        if path.is_dir() {
            // Read in e2e/tests/kubernetes and e2e/tests/deb.
            let known = ["debian", "helm", "kubernetes", "kustomize", "network"];
            assert!(known.contains(&name.as_str()), "{name} is read by no test");
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if name.starts_with("net-conf.") {
            NetworkConfig::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        } else if name.ends_with(".conflist") {
            let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(list["name"].is_string() && !list["plugins"].as_array().unwrap().is_empty(), "{name}");
        } else if name.ends_with(".service") {
            environment(&name, &text.replace("Environment=", "").replace(' ', "\n"));
            let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
            Options::parse_go_style(start.split(' ').map(String::from))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        } else if name.ends_with(".default") {
            environment(&name, &text.replace("\n#FLANNELD", "\nFLANNELD"));
        } else {
            panic!("{name} is read by no test");
        }
        seen.push(name);
    }
    assert!(seen.len() >= 5, "{seen:?}");
}

/// Every variable is a flag of the daemon's.
fn environment(name: &str, text: &str) {
    let variables: Vec<_> = text.lines().filter(|line| line.starts_with("FLANNELD_") && line.contains('=')).collect();
    assert!(variables.len() >= 2, "{name}: {variables:?}");
    for variable in variables {
        let (variable, value) = variable.split_once('=').unwrap();
        let flag = variable.trim_start_matches("FLANNELD_").to_lowercase().replace('_', "-");
        let args = ["flanneld-rs".to_owned(), format!("--{flag}={value}")];
        Options::parse_go_style(args).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_daemon_installs_the_sample_conflist() {
    let dir = tempfile::tempdir().unwrap();
    let subnet_file = ipam::subnet_env::DEFAULT_PATH.into();
    let files = Files { subnet_file, conf_dir: Some(dir.path().into()), conflist: None };
    files.install_conflist().unwrap();
    let installed = fs::read_to_string(dir.path().join("10-flannel.conflist")).unwrap();
    assert_eq!(installed, fs::read_to_string(conf().join("10-flannel.conflist")).unwrap());
    // Nothing else is left in a directory that the runtime reads.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// kube-flannel's ConfigMap has a conflist, which is installed as it is; a broken one leaves the former in place.
#[test]
fn a_given_conflist_is_installed_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (given, conf_dir) = (dir.path().join("cni-conf.json"), dir.path().join("net.d"));
    let files = Files {
        subnet_file: dir.path().join("subnet.env"),
        conf_dir: Some(conf_dir.clone()),
        conflist: Some(given.clone()),
    };
    let installed = || fs::read_to_string(conf_dir.join("10-flannel.conflist")).ok();
    assert!(files.install_conflist().unwrap_err().contains("cni-conf.json"));
    assert_eq!(installed(), None);
    let first = "{ \"name\":\"cbr0\", \"plugins\": [{\"type\": \"flannel\"}] }";
    fs::write(&given, first).unwrap();
    files.install_conflist().unwrap();
    assert_eq!(installed().unwrap(), first);
    for broken in [
        "",
        "{",
        "[]",
        r#"{"plugins": [{"type": "a"}]}"#,
        r#"{"name": "n", "plugins": []}"#,
        r#"{"name": "n", "plugins": [1]}"#,
    ] {
        fs::write(&given, broken).unwrap();
        files.install_conflist().unwrap_err();
        assert_eq!(installed().unwrap(), first, "{broken}");
    }
    // Nobody ever writes to this one, or too much to that.
    let too_long = format!("{first}{}", " ".repeat(1 << 20));
    for make in
        [&|| mkfifo(&given, Mode::S_IRWXU).unwrap(), &|| fs::write(&given, &too_long).unwrap()] as [&dyn Fn(); 2]
    {
        fs::remove_file(&given).unwrap();
        make();
        let refusal = files.install_conflist().unwrap_err();
        assert!(refusal.contains("regular file") || refusal.contains("more than"), "{refusal}");
        assert_eq!(installed().unwrap(), first);
    }
    let second = r#"{"name": "cbr0", "plugins": [{"type": "flannel-rs"}]}"#;
    fs::write(&given, second).unwrap();
    files.install_conflist().unwrap();
    assert_eq!(installed().unwrap(), second);
    assert!(files.written().iter().any(|path| path.ends_with("10-flannel.conflist")));
}
