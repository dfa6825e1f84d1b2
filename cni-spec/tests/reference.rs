//! The same mistakes and requests to Debian's reference plugins and to us: same exit status, same error code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test fails by panicking
#![allow(clippy::disallowed_methods)] // starts processes: the reference plugins

mod echo;

use cni_spec::{AddResult, Plugin, SpecVersion, answer};
use echo::{Echo, Env, env};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIRECTORY: &str = "/usr/lib/cni";

/// What a run comes to: exit status and standard output.
#[derive(Debug)]
struct Outcome {
    status: i32,
    stdout: String,
}

impl Outcome {
    /// Exit status and error code, the things that a runtime acts on.
    fn verdict(&self) -> (i32, Option<u64>) {
        let error = serde_json::from_str::<Value>(&self.stdout).ok();
        (self.status, error.and_then(|error| error.get("code")?.as_u64()))
    }

    fn message(&self) -> String {
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        error["msg"].as_str().unwrap().to_owned()
    }
}

fn reference(plugin: &str, env: &Env, config: &str) -> Outcome {
    let executable = Path::new(DIRECTORY).join(plugin);
    assert!(executable.exists(), "{} is missing: apt-get install containernetworking-plugins", executable.display());
    let mut child = Command::new(executable)
        .env_clear()
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A plugin that ends without reading breaks this pipe.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    let output = child.wait_with_output().unwrap();
    Outcome { status: output.status.code().unwrap(), stdout: String::from_utf8(output.stdout).unwrap() }
}

fn ours(plugin: &str, env: &Env, config: &str) -> Outcome {
    let echo = Echo::default();
    let select = |name: &str| (name == plugin).then_some(&echo as &dyn Plugin);
    let answer = answer(plugin, |name| env.get(name).cloned(), config.as_bytes(), select);
    Outcome { status: answer.status.into(), stdout: String::from_utf8(answer.stdout).unwrap() }
}

fn compare(env: &Env, config: &str) -> (Outcome, Outcome) {
    for plugin in ["loopback", "host-local"] {
        let (theirs, ours) = (reference(plugin, env, config), ours(plugin, env, config));
        assert_eq!(ours.verdict(), theirs.verdict(), "{plugin} {env:?} {config}\n{ours:?}\n{theirs:?}");
    }
    (reference("host-local", env, config), ours("host-local", env, config))
}

const CONFIG: &str = r#"{"cniVersion":"0.3.1","name":"net","type":"host-local"}"#;

#[test]
fn missing_variables() {
    for command in ["ADD", "DEL"] {
        let only_command: Env = [("CNI_COMMAND", command.into())].into();
        let (theirs, ours) = compare(&only_command, CONFIG);
        assert_eq!(ours.message(), theirs.message());
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"] {
            let mut env = env(command);
            env.remove(name);
            let (theirs, ours) = compare(&env, CONFIG);
            assert_eq!(ours.message(), theirs.message());
            env.insert(name, "".into());
            compare(&env, CONFIG);
        }
    }
    let mut env = env("ADD");
    env.remove("CNI_NETNS");
    compare(&env, CONFIG);
}

#[test]
fn wrong_variables() {
    for (name, values) in [
        ("CNI_COMMAND", ["CREATE", "add", "ADD ", "add;", "?"]),
        ("CNI_CONTAINERID", ["../x", "-a", "a b", "ä", "a/b"]),
        ("CNI_IFNAME", ["sixteen-letters!", ".", "..", "a/b", "a\u{2003}b"]),
    ] {
        for value in values {
            let mut env = env("DEL");
            env.insert(name, value.into());
            let (theirs, _) = compare(&env, CONFIG);
            assert_eq!(theirs.verdict(), (1, Some(4)), "{name}={value}");
        }
    }
}

#[test]
fn malformed_configurations() {
    for config in [
        "",
        "{",
        "[]",
        "{}",
        "{\"name\":\"\"}",
        "{\"name\":\"a/b\"}",
        "{\"name\":\"-a\"}",
        "{\"name\":5}",
        "{\"name\":\"net\",\"cniVersion\":5}",
        "{\"name\":\"net\",\"cniVersion\":\"0.9.0\"}",
        "{\"name\":\"net\",\"cniVersion\":\"abc\"}",
        "{\"NAME\":\"net\",\"CNIVERSION\":\"0.9.0\"}",
        "{\"name\":\"net\"} trailing",
    ] {
        let (theirs, _) = compare(&env("DEL"), config);
        assert_eq!(theirs.status, 1, "{config}");
    }
}

#[test]
fn check_before_its_time() {
    let (theirs, _) = compare(&env("CHECK"), CONFIG);
    assert_eq!(theirs.verdict(), (1, Some(1)));
}

#[test]
fn no_command_and_version() {
    let (theirs, ours) = compare(&Env::new(), CONFIG);
    assert_eq!((ours.status, ours.stdout), (theirs.status, theirs.stdout));
    let (theirs, ours) = compare(&[("CNI_COMMAND", "VERSION".into())].into(), "");
    let versions = |outcome: &Outcome| -> Vec<String> {
        let answer: Value = serde_json::from_str(&outcome.stdout).unwrap();
        serde_json::from_value(answer["supportedVersions"].clone()).unwrap()
    };
    assert!(versions(&ours).starts_with(&versions(&theirs)), "{theirs:?} {ours:?}");
}

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn results_are_the_same_to_the_byte() {
    let scratch = Scratch(std::env::temp_dir().join(format!("cni-spec-reference-{}", std::process::id())));
    // Debian's plugins stop at 1.0.0.
    for version in SpecVersion::ALL.into_iter().filter(|version| *version < SpecVersion::V1_1_0) {
        let ipam = json!({
            "type": "host-local",
            "dataDir": scratch.0.join(version.as_str()),
            "ranges": [[{ "subnet": "10.9.0.0/24" }], [{ "subnet": "fd00:9::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00:9::1" }, { "dst": "10.3.0.7/16" }]
        });
        let config = json!({ "cniVersion": version.as_str(), "name": "net", "type": "bridge", "ipam": ipam });
        let theirs = reference("host-local", &env("ADD"), &config.to_string());
        assert_eq!(theirs.status, 0, "{theirs:?}");
        let result = AddResult::from_json(&serde_json::from_str(&theirs.stdout).unwrap(), version).unwrap();
        assert_eq!(result.ips.len(), 2);
        assert_eq!(result.to_text(version).unwrap(), theirs.stdout);
    }
}
