//! The meta plugin, through to the bridge; and its scratch files, of which Go's plugin has to find ours and we its.

use crate::bench::{Bench, Whose};
use e2e::oracle;
use e2e::runner::{Attachment, Failure, Network};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn network(bench: &Bench, version: &str) -> Network {
    let env = bench.directory("subnet.env");
    let lines = "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    fs::write(&env, lines).unwrap();
    let flannel = json!({
        "type": "flannel", "subnetFile": env, "dataDir": bench.directory("flannel"),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "ipam": {"dataDir": bench.directory("networks")},
    });
    bench.network(version, json!([flannel]))
}

#[test]
fn the_chain_of_kube_flannel() {
    let bench = Bench::new(Whose::Ours);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let network = network(&bench, version);
        let (one, two) = (bench.attach(&network, "box1"), bench.attach(&network, "box2"));
        assert_eq!(one.result["cniVersion"], version);
        assert_eq!(one.result["interfaces"][0]["name"], "cni0");
        assert_eq!(bench.seen(one.sandbox.network(), two.address), one.address.to_string());
        assert_eq!(bench.seen(one.sandbox.network(), "192.0.2.2".parse().unwrap()), "192.0.2.1", "the daemon does not");
        let directory = bench.directory("flannel");
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(directory.join("box1")).unwrap().permissions().mode() & 0o777, 0o600);
        if version >= "0.4.0" {
            bench.runtime.check(&network, &one.attachment).unwrap();
            oracle::ip(one.sandbox.network(), "address flush dev eth0").unwrap();
            assert!(bench.runtime.check(&network, &one.attachment).is_err());
        }
        if version == "1.1.0" {
            bench.runtime.status(&network).unwrap();
            bench.runtime.gc(&network, &[("box2", "eth0")]).unwrap();
            assert!(!directory.join("box1").exists() && directory.join("box2").exists());
            assert!(!oracle::links(one.sandbox.network()).unwrap().contains("eth0"));
        }
        for pod in [one, two] {
            bench.runtime.del(&network, &pod.attachment).unwrap();
            bench.runtime.del(&network, &pod.attachment).unwrap();
        }
        bench.assert_clean(version);
    }
}

/// Whatever became of the scratch file and of the daemon's: DEL removes the link and frees the address.
#[test]
fn del_needs_no_scratch_file() {
    let bench = Bench::new(Whose::Ours);
    let network = network(&bench, "1.0.0");
    let file = bench.directory("flannel/box1");
    let whole = |text: &[u8]| text.to_vec();
    type Damage<'a> = (&'a str, Box<dyn Fn(&[u8]) -> Option<Vec<u8>>>);
    let damages: Vec<Damage<'_>> = vec![
        ("missing", Box::new(|_| None)),
        ("empty", Box::new(|_| Some(Vec::new()))),
        ("torn", Box::new(|text| Some(text[..text.len() / 2].to_vec()))),
        ("zeros", Box::new(|text| Some(vec![0; text.len()]))),
        ("another network's", Box::new(|_| Some(b"{\"name\": \"other\", \"type\": \"nowhere\"}".to_vec()))),
        ("whole", Box::new(move |text| Some(whole(text)))),
    ];
    for (name, damage) in damages {
        // The daemon may not be ready either; where all is well, once with it.
        for daemon_is_ready in [true, false].into_iter().filter(|ready| !ready || name == "whole") {
            let pod = bench.attach(&self::network(&bench, "1.0.0"), "box1");
            let text = fs::read(&file).unwrap();
            fs::remove_file(&file).unwrap();
            if let Some(text) = damage(&text) {
                fs::write(&file, text).unwrap();
            }
            if !daemon_is_ready {
                fs::remove_file(bench.directory("subnet.env")).unwrap();
            }
            let attachment = Attachment { netns: None, ..pod.attachment.clone() };
            bench.runtime.del(&network, &attachment).unwrap();
            if name == "another network's" {
                fs::remove_file(&file).unwrap();
            }
            bench.assert_clean(name);
        }
    }
}

#[test]
fn two_interfaces_of_one_container() {
    let bench = Bench::new(Whose::Ours);
    let network = network(&bench, "1.0.0");
    let pod = bench.attach(&network, "box1");
    let second = Attachment { ifname: "eth1".into(), ..pod.attachment.clone() };
    bench.runtime.add(&network, &second).unwrap();
    bench.runtime.check(&network, &second).unwrap();
    bench.runtime.del(&network, &pod.attachment).unwrap();
    assert!(oracle::links(pod.sandbox.network()).unwrap().contains("eth1"));
    bench.runtime.del(&network, &second).unwrap();
    bench.assert_clean("after both");
}

/// Go's plugin runs the delegate with the file's content: so its bridge has to be able to remove our pod, and we its.
#[test]
fn either_side_removes_the_others_pods() {
    let ours = Bench::new(Whose::Ours);
    let network = network(&ours, "1.0.0");
    let pod = ours.attach(&network, "box1");
    let delegate: Value = serde_json::from_slice(&fs::read(ours.directory("flannel/box1")).unwrap()).unwrap();
    let theirs = e2e::runner::Runtime {
        plugins: "/usr/lib/cni".into(),
        cache: ours.directory("results"),
        node: ours.node().try_clone().unwrap(),
    };
    let delegate = ours.network("1.0.0", json!([delegate]));
    let output = theirs.call(&[], "DEL", &delegate, &pod.attachment).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!oracle::links(pod.sandbox.network()).unwrap().contains("eth0"));
    let left = oracle::files(&ours.directory("networks")).unwrap();
    assert!(!left.iter().any(|(_, content)| content.contains("box")), "{left:?}");
    ours.runtime.del(&network, &pod.attachment).unwrap();

    assert!(theirs.call(&[], "ADD", &delegate, &pod.attachment).unwrap().status.success());
    let config = delegate.config(&json!({"type": "bridge"}), None, None);
    assert_eq!(config["name"], "net1");
    let again = ours.attach(&network, "box2");
    let text = fs::read(ours.directory("flannel/box2")).unwrap();
    ours.runtime.del(&network, &again.attachment).unwrap();
    fs::write(ours.directory("flannel/box1"), text).unwrap();
    ours.runtime.del(&network, &pod.attachment).unwrap();
    let links = oracle::links(ours.node()).unwrap();
    assert!(!links.iter().any(|name| name.starts_with("veth")), "{links:?}");
    let left = oracle::files(&ours.directory("networks")).unwrap();
    assert!(!left.iter().any(|(_, content)| content.contains("box")), "{left:?}");
}

#[test]
fn the_daemon_that_is_not_ready_is_named() {
    let bench = Bench::new(Whose::Ours);
    let network = network(&bench, "1.1.0");
    fs::remove_file(bench.directory("subnet.env")).unwrap();
    let sandbox = e2e::pod::Sandbox::start("box1", bench.work.path()).unwrap();
    let attachment = Attachment::eth0("box1", sandbox.path());
    for (error, code) in [
        (bench.runtime.add(&network, &attachment).map(drop).unwrap_err(), 11),
        (bench.runtime.status(&network).unwrap_err(), 50),
    ] {
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.code, Some(code), "{failure}");
        assert!(failure.message.contains("subnet.env"), "{failure}");
    }
    bench.runtime.del(&network, &attachment).unwrap();
    bench.assert_clean("after a refused ADD");
}

/// As node images may have it: other types to delegate to.
#[test]
fn delegates_to_ptp_and_to_somebody_else() {
    let bench = Bench::new(Whose::Ours);
    std::os::unix::fs::symlink("/usr/lib/cni/bridge", bench.runtime.plugins.join("their-bridge")).unwrap();
    for kind in ["ptp", "their-bridge"] {
        let mut config = network(&bench, "1.0.0").config(&json!({}), None, None);
        config["type"] = "flannel".into();
        for (key, value) in [
            ("subnetFile", json!(bench.directory("subnet.env"))),
            ("dataDir", json!(bench.directory("flannel"))),
            ("delegate", json!({"type": kind, "isDefaultGateway": true})),
            ("ipam", json!({"dataDir": bench.directory("networks")})),
        ] {
            config[key] = value;
        }
        let network = bench.network("1.0.0", json!([config]));
        let pod = bench.attach(&network, "box1");
        assert_eq!(bench.seen(bench.node(), pod.address), "10.88.3.1", "{kind}");
        // Theirs of 1.1.1 does not find a route that its own result tells without the gateway.
        if kind == "ptp" {
            bench.runtime.check(&network, &pod.attachment).unwrap();
        }
        bench.runtime.del(&network, &pod.attachment).unwrap();
        assert!(!oracle::links(pod.sandbox.network()).unwrap().contains("eth0"), "{kind}");
        assert!(!bench.directory("flannel/box1").exists());
    }
}
