//! Chains of ours and theirs, and address management by somebody else.

use crate::bench::{Bench, OUTSIDE, Whose};
use e2e::oracle;
use e2e::runner::{Attachment, Failure};
use serde_json::json;

/// bridge, firewall and tuning, of which each comes from either side.
#[test]
fn every_mixture_of_a_chain_works() {
    let names = ["bridge", "firewall", "tuning"];
    for mixture in 1..8u32 {
        let theirs: Vec<&str> = (0..3).filter(|bit| mixture & 1 << bit != 0).map(|bit| names[bit]).collect();
        let bench = Bench::with(Whose::Ours, &theirs);
        let bridge =
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": bench.host_local()});
        let tuning = json!({"type": "tuning", "dataDir": bench.directory("tuning"), "mtu": 1400});
        let network = bench.network("1.0.0", json!([bridge, {"type": "firewall"}, tuning]));
        let (one, two) = (bench.attach(&network, "box1"), bench.attach(&network, "box2"));
        assert_eq!(bench.seen(one.sandbox.network(), two.address), one.address.to_string(), "{theirs:?}");
        assert_eq!(bench.seen(one.sandbox.network(), OUTSIDE.parse().unwrap()), "192.0.2.1", "{theirs:?}");
        for pod in [one, two] {
            bench.runtime.check(&network, &pod.attachment).unwrap_or_else(|error| panic!("{theirs:?}: {error}"));
            bench.runtime.del(&network, &pod.attachment).unwrap_or_else(|error| panic!("{theirs:?}: {error}"));
            assert!(!oracle::links(pod.sandbox.network()).unwrap().contains("eth0"), "{theirs:?}");
        }
        let left = oracle::files(&bench.directory("networks")).unwrap();
        assert!(!left.iter().any(|(_, content)| content.contains("box")), "{theirs:?}: {left:?}");
    }
}

/// Their bridge runs our host-local and our static as executables.
#[test]
fn their_bridge_takes_our_addresses() {
    let bench = Bench::with(Whose::Theirs, &["host-local", "static"]);
    for ipam in [bench.host_local(), json!({"type": "static", "addresses": [{"address": "10.88.0.7/24"}]})] {
        let network =
            bench.network("1.0.0", json!([{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam}]));
        let pod = bench.attach(&network, "box1");
        bench.runtime.check(&network, &pod.attachment).unwrap();
        bench.runtime.del(&network, &pod.attachment).unwrap();
    }
}

/// An IPAM plugin that is not part of us is found in CNI_PATH and executed, for each verb; its error comes through.
#[test]
fn our_bridge_takes_their_addresses() {
    let bench = Bench::new(Whose::Ours);
    let mut ipam = bench.host_local();
    ipam["type"] = "their-addresses".into();
    ipam["ranges"] = json!([[{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.5", "rangeEnd": "10.88.0.5"}]]);
    for plugin in ["bridge", "ptp"] {
        let list = json!([{"type": plugin, "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam}]);
        let network = bench.network("1.0.0", list);
        let pod = bench.attach(&network, "box1");
        assert_eq!(bench.seen(bench.node(), pod.address), "10.88.0.1", "{plugin}");
        assert_eq!(bench.seen(pod.sandbox.network(), OUTSIDE.parse().unwrap()), "192.0.2.1", "{plugin}");
        bench.runtime.check(&network, &pod.attachment).unwrap();
        let full = Attachment { id: "box2".into(), ifname: "eth1".into(), ..pod.attachment.clone() };
        let error = bench.runtime.add(&network, &full).unwrap_err();
        assert!(error.to_string().contains("no IP addresses available in range set"), "{error}");
        assert!(error.downcast_ref::<Failure>().unwrap().code.is_some(), "{error}");
        bench.runtime.del(&network, &full).unwrap();
        bench.runtime.status(&network.version("1.1.0")).unwrap();
        bench.runtime.del(&network, &pod.attachment).unwrap();
        bench.assert_clean(plugin);
    }
}

#[test]
fn what_cannot_manage_addresses_is_refused() {
    let bench = Bench::new(Whose::Ours);
    let sandbox = e2e::pod::Sandbox::start("box1", bench.work.path()).unwrap();
    let attachment = Attachment::eth0("box1", sandbox.path());
    for (name, text) in [
        ("nowhere", "failed to find plugin"),
        ("bridge", "does not do that"),
        ("../bin/bridge", "the name of a plugin"),
    ] {
        let ipam = json!({"type": name});
        let network = bench.network("1.0.0", json!([{"type": "bridge", "bridge": "cni0", "ipam": ipam}]));
        let error = bench.runtime.add(&network, &attachment).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// A plugin that says nothing, too much, or nonsense.
#[test]
fn a_bad_delegate_is_an_error_that_names_it() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(Whose::Ours);
    let sandbox = e2e::pod::Sandbox::start("box1", bench.work.path()).unwrap();
    let attachment = Attachment::eth0("box1", sandbox.path());
    let path = bench.runtime.plugins.join("bad-addresses");
    for (script, code, text) in [
        ("exit 3", 999, "exit status: 3"),
        ("echo nonsense", 6, "not JSON"),
        ("echo '{\"code\": 123, \"msg\": \"no more\", \"details\": \"at all\"}'; exit 1", 123, "no more at all"),
        ("echo '{\"cniVersion\": \"1.0.0\"}'", 7, "missing IP config"),
        ("exec head -c 9000000 /dev/zero", 5, "more than"),
        ("cat >/dev/null; kill -9 $$", 999, "signal: 9"),
    ] {
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ipam = json!({"type": "bad-addresses"});
        let network = bench.network("1.0.0", json!([{"type": "bridge", "bridge": "cni0", "ipam": ipam}]));
        let error = bench.runtime.add(&network, &attachment).unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.code, Some(code), "{script}: {failure}");
        assert!(failure.message.contains(text), "{script}: {failure}");
        bench.assert_clean(script);
    }
}
