//! tuning, and the rarer settings of bridge.

use crate::bench::{Bench, Whose};
use e2e::oracle;
use e2e::runner::Failure;
use serde_json::{Value, json};

fn tuned(bench: &Bench, more: Value) -> Value {
    let mut tuning = json!({"type": "tuning", "dataDir": bench.directory("tuning")});
    tuning.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": bench.host_local()});
    json!([bridge, tuning])
}

#[test]
fn tuning_gives_back_what_it_took() {
    let bench = Bench::new(Whose::Ours);
    let pod = bench.attach(&bench.network("1.0.0", json!([tuned(&bench, json!({}))[0]])), "box1");
    let before = oracle::ip_list(pod.sandbox.network(), "link show dev eth0").unwrap();
    let settings = json!({"mac": "c2:11:22:33:44:55", "mtu": 1454, "promisc": true, "allmulti": true, "txQLen": 77});
    let alone = bench.network("1.0.0", json!([tuned(&bench, settings)[1]]));
    let mut chained = alone.config(&tuned(&bench, json!({}))[1], Some(&pod.attachment), Some(&pod.result));
    for (key, value) in [("mac", json!("c2:11:22:33:44:55")), ("mtu", json!(1454)), ("txQLen", json!(77))] {
        chained[key] = value;
    }
    let chained = bench.network("1.0.0", json!([chained]));
    let call = |verb: &str| {
        let output = bench.runtime.call(&[], verb, &chained, &pod.attachment).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    call("ADD");
    let during = oracle::ip_list(pod.sandbox.network(), "link show dev eth0").unwrap();
    assert_eq!((&during[0]["mtu"], &during[0]["txqlen"]), (&json!(1454), &json!(77)));
    call("CHECK");
    oracle::ip(pod.sandbox.network(), "link set eth0 mtu 1300").unwrap();
    assert!(!bench.runtime.call(&[], "CHECK", &chained, &pod.attachment).unwrap().status.success());
    call("DEL");
    assert_eq!(oracle::ip_list(pod.sandbox.network(), "link show dev eth0").unwrap(), before);
    call("DEL");
}

#[test]
fn tuning_touches_nothing_but_the_sandbox() {
    let bench = Bench::new(Whose::Ours);
    for (sysctl, code) in [(json!({"kernel.hostname": "x"}), 7), (json!({"net.core.rmem_max": "1"}), 100)] {
        let network = bench.network("1.0.0", tuned(&bench, json!({"sysctl": sysctl})));
        let sandbox = e2e::pod::Sandbox::start("box1", bench.work.path()).unwrap();
        let attachment = e2e::runner::Attachment::eth0("box1", sandbox.path());
        let error = bench.runtime.add(&network, &attachment).unwrap_err();
        assert_eq!(error.downcast_ref::<Failure>().unwrap().code, Some(code), "{error}");
        bench.runtime.del(&network, &attachment).unwrap();
        bench.assert_clean("after a refused ADD");
    }
}

#[test]
fn a_bridge_isolates_ports_takes_everything_and_leaves_interfaces_down() {
    let bench = Bench::new(Whose::Ours);
    let bridge = |more: Value| {
        let mut plugin = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": bench.host_local()});
        plugin.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.network("1.0.0", json!([plugin]))
    };
    // Without a VLAN there is nothing to preserve, as for the reference.
    let isolated = bridge(json!({"portIsolation": true, "promiscMode": true, "preserveDefaultVlan": false}));
    let (one, two) = (bench.attach(&isolated, "box1"), bench.attach(&isolated, "box2"));
    assert_eq!(bench.seen(one.sandbox.network(), two.address), "silence");
    assert_eq!(bench.seen(bench.node(), two.address), "10.88.0.1");
    bench.runtime.check(&isolated, &one.attachment).unwrap();
    oracle::ip(bench.node(), "link set cni0 promisc off").unwrap();
    let error = bench.runtime.check(&isolated, &one.attachment).unwrap_err();
    assert!(error.to_string().contains("promiscuous"), "{error}");

    let down = bridge(json!({"ipam": {}, "isGateway": false, "disableContainerInterface": true}));
    let sandbox = e2e::pod::Sandbox::start("box3", bench.work.path()).unwrap();
    let attachment = e2e::runner::Attachment::eth0("box3", sandbox.path());
    bench.runtime.add(&down, &attachment).unwrap();
    let link = oracle::ip_list(sandbox.network(), "link show dev eth0").unwrap().remove(0);
    assert_eq!(link["operstate"], "DOWN");
    bench.runtime.check(&down, &attachment).unwrap();

    for (wrong, named) in [
        (json!({"vlan": 7}), "vlan"),
        (json!({"vlanTrunk": [{"id": 7}]}), "vlan"),
        (json!({"vlan": 7, "preserveDefaultVlan": false}), "vlan"),
        (json!({"ipMasqBackend": "pf"}), "ipMasqBackend"),
        (json!({"disableContainerInterface": true}), "disableContainerInterface"),
        (json!({"promiscMode": true, "hairpinMode": true}), "promiscMode"),
    ] {
        let error = bench.runtime.add(&bridge(wrong), &attachment).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}
