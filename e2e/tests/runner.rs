//! Our runtime side of CNI against the specification: what plugins are called with, and when they are not called, in every
//! version. The plugins are scripts that write down how they were called.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::runner::{Attachment, Network, Runtime};
use e2e::workdir::WorkDir;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

struct Stage {
    work: WorkDir,
    runtime: Runtime,
}

/// A call that a plugin noted: the verb, and its standard input.
type Call = (String, Value);

impl Stage {
    fn new() -> Self {
        let work = WorkDir::new().unwrap();
        let plugins = work.make("bin").unwrap();
        for name in ["first", "second"] {
            let log = work.path().join("log");
            let script = format!(
                "#!/bin/sh\nread -r config\nprintf '%s\\t%s\\n' \"$CNI_COMMAND {name} $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS\" \"$config\" \
                 >>{}\nif [ -e {} ]; then echo '{{\"code\": 100, \"msg\": \"{name} fails\"}}'; exit 1; fi\n\
                 version=$(printf %s \"$config\" | sed 's/.*\"cniVersion\":\"\\([^\"]*\\)\".*/\\1/')\n\
                 [ $CNI_COMMAND != ADD ] || echo '{{\"cniVersion\": \"'$version'\", \"dns\": {{\"domain\": \"{name}\"}}}}'\n",
                log.display(),
                work.path().join(format!("{name}-fails")).display(),
            );
            fs::write(plugins.join(name), script).unwrap();
            fs::set_permissions(plugins.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let node = Netns::create().expect("the tests need root");
        let runtime = Runtime { plugins, cache: work.path().join("results"), node };
        Stage { work, runtime }
    }

    /// The calls since the last time.
    fn calls(&self) -> Vec<Call> {
        let log = self.work.path().join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        let call = |line: &str| {
            let (call, config) = line.split_once('\t').unwrap();
            (call.trim_end().to_owned(), serde_json::from_str(config).unwrap())
        };
        text.lines().map(call).collect()
    }
}

fn network(version: &str, more: Value) -> Network {
    let mut list = json!({
        "cniVersion": version, "name": "net1", "plugins": [
            {"type": "first", "capabilities": {"mac": true, "ips": false}, "runtimeConfig": {"mac": "the file's"}},
            {"type": "second", "capabilities": {"portMappings": true, "mac": true}, "cni.dev/x": 1},
        ],
    });
    list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Network::new(list).unwrap()
}

fn attachment(id: &str) -> Attachment {
    let capabilities = json!({"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/8"], "portMappings": []});
    let capabilities = capabilities.as_object().unwrap().clone();
    Attachment { args: "A=b;C=d".into(), capabilities, ..Attachment::eth0(id, "/some/netns") }
}

fn verbs(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|(call, _)| call.as_str()).collect()
}

#[test]
fn every_plugin_reads_its_own_part() {
    let stage = Stage::new();
    for version in VERSIONS {
        let network = network(version, json!({}));
        let result = stage.runtime.add(&network, &attachment("box")).unwrap();
        assert_eq!(result["dns"]["domain"], "second");
        let calls = stage.calls();
        assert_eq!(verbs(&calls), ["ADD first box eth0 A=b;C=d", "ADD second box eth0 A=b;C=d"]);
        let [(_, first), (_, second)] = calls.as_slice() else { panic!("{calls:?}") };
        let granted = json!({"mac": "02:00:00:00:00:01"});
        // Nothing but what it declares and the runtime has; nothing that only the runtime may say.
        assert_eq!(*first, json!({"cniVersion": version, "name": "net1", "type": "first", "runtimeConfig": granted}));
        let granted = json!({"mac": "02:00:00:00:00:01", "portMappings": []});
        let previous = json!({"cniVersion": version, "dns": {"domain": "first"}});
        assert_eq!(
            *second,
            json!({"cniVersion": version, "name": "net1", "type": "second", "runtimeConfig": granted, "prevResult": previous})
        );
        stage.runtime.del(&network, &attachment("box")).unwrap();
        stage.calls();
    }
}

#[test]
fn every_version_has_its_verbs() {
    let stage = Stage::new();
    for version in VERSIONS {
        let network = network(version, json!({}));
        stage.runtime.add(&network, &attachment("box")).unwrap();
        stage.calls();
        stage.runtime.check(&network, &attachment("box")).unwrap();
        stage.runtime.status(&network).unwrap();
        stage.runtime.gc(&network, &[("box", "eth0")]).unwrap();
        let calls = stage.calls();
        let checks = ["CHECK first box eth0 A=b;C=d", "CHECK second box eth0 A=b;C=d"];
        let newest = ["STATUS first", "STATUS second", "GC first", "GC second"];
        let wanted = match version {
            "1.1.0" => [&checks[..], &newest].concat(),
            "0.4.0" | "1.0.0" => checks.to_vec(),
            _ => vec![],
        };
        assert_eq!(verbs(&calls), wanted, "{version}");
        for (call, config) in &calls {
            let answered = json!({"cniVersion": version, "dns": {"domain": "second"}});
            assert_eq!(config["prevResult"], if call.starts_with("CHECK") { answered } else { Value::Null }, "{call}");
            let valid = json!([{"containerID": "box", "ifname": "eth0"}]);
            let told = &config["cni.dev/valid-attachments"];
            assert_eq!(*told, if call.starts_with("GC") { valid } else { Value::Null }, "{call}");
        }
        stage.runtime.del(&network, &attachment("box")).unwrap();
        let calls = stage.calls();
        assert_eq!(verbs(&calls), ["DEL second box eth0 A=b;C=d", "DEL first box eth0 A=b;C=d"]);
        for (_, config) in &calls {
            assert_eq!(config["prevResult"]["dns"]["domain"] == "second", version >= "0.4.0", "{version}: {config}");
        }
        // Forgotten with the attachment.
        stage.runtime.del(&network, &attachment("box")).unwrap();
        assert!(stage.calls().iter().all(|(_, config)| config["prevResult"].is_null()), "{version}");
    }
}

#[test]
fn a_network_may_forbid_verbs() {
    let stage = Stage::new();
    let network = network("1.1.0", json!({"disableCheck": true, "disableGC": true}));
    stage.runtime.add(&network, &attachment("box")).unwrap();
    stage.calls();
    stage.runtime.check(&network, &attachment("box")).unwrap();
    stage.runtime.gc(&network, &[]).unwrap();
    assert_eq!(stage.calls(), []);
}

#[test]
fn the_newest_of_several_versions_is_spoken() {
    let stage = Stage::new();
    let network = network("0.4.0", json!({"cniVersions": ["0.3.1", "1.1.0", "1.0.0", "7.0.0"]}));
    stage.runtime.status(&network).unwrap();
    assert_eq!(stage.calls()[0].1["cniVersion"], "1.1.0");
}

/// A result that was kept before the conflist changed is told in the conflist's version.
#[test]
fn a_kept_result_follows_the_version() {
    let stage = Stage::new();
    stage.runtime.add(&network("0.4.0", json!({})), &attachment("box")).unwrap();
    stage.calls();
    stage.runtime.check(&network("1.0.0", json!({})), &attachment("box")).unwrap();
    assert_eq!(stage.calls()[0].1["prevResult"]["cniVersion"], "1.0.0");
}

#[test]
fn failures_end_a_walk_or_not_as_the_specification_says() {
    let stage = Stage::new();
    let network = network("1.1.0", json!({}));
    stage.runtime.add(&network, &attachment("box")).unwrap();
    stage.calls();
    fs::write(stage.work.path().join("second-fails"), "").unwrap();
    assert!(stage.runtime.del(&network, &attachment("box")).unwrap_err().to_string().contains("second fails"));
    assert_eq!(verbs(&stage.calls()), ["DEL second box eth0 A=b;C=d"], "DEL ends at the first failure");
    fs::write(stage.work.path().join("first-fails"), "").unwrap();
    assert!(stage.runtime.gc(&network, &[]).unwrap_err().to_string().contains("first fails"));
    assert_eq!(verbs(&stage.calls()), ["GC first", "GC second"], "GC asks everybody");
    assert!(stage.runtime.status(&network).is_err());
    assert_eq!(verbs(&stage.calls()), ["STATUS first"]);
    fs::remove_file(stage.work.path().join("first-fails")).unwrap();
    fs::remove_file(stage.work.path().join("second-fails")).unwrap();
    // It is still remembered, so that DEL can be tried again.
    stage.runtime.del(&network, &attachment("box")).unwrap();
    assert_eq!(stage.calls()[0].1["prevResult"]["dns"]["domain"], "second");
}

#[test]
fn what_the_runtime_remembers_is_swept_with_its_own_arguments() {
    let stage = Stage::new();
    let network = network("1.0.0", json!({}));
    for id in ["box1", "box2"] {
        stage.runtime.add(&network, &attachment(id)).unwrap();
    }
    stage.calls();
    stage.runtime.sweep(&network, &[("box2", "eth0")]).unwrap();
    let calls = stage.calls();
    assert_eq!(verbs(&calls), ["DEL second box1 eth0 A=b;C=d", "DEL first box1 eth0 A=b;C=d"]);
    assert_eq!(calls[0].1["runtimeConfig"], json!({"mac": "02:00:00:00:00:01", "portMappings": []}));
    stage.runtime.sweep(&network, &[]).unwrap();
    assert_eq!(stage.calls().len(), 2);
    stage.runtime.sweep(&network, &[]).unwrap();
    assert_eq!(stage.calls(), []);
}
