//! Plugins that are killed in the middle, and rules that go missing.

use crate::bench::{Bench, OUTSIDE, Whose};
use e2e::runner::{Attachment, Network};
use e2e::{oracle, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};

/// Runs ADD killed at every other of its system calls of the names in `calls`, with DEL or GC by turns and a look at what
/// is left.
fn kill_add(bench: &Bench, network: &Network, calls: &[&str]) {
    tools::from_package("/usr/bin/strace", "strace").unwrap();
    let sandbox = Netns::create().unwrap();
    let attachment = Attachment::eth0("box", sandbox.path());
    let trace = bench.directory("trace");
    for name in calls {
        let mut killed = 0;
        for count in (1..).step_by(2) {
            let filter = format!("inject={name}:signal=KILL:when={count}");
            let strace = ["/usr/bin/strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e", &filter];
            let output = bench.runtime.call(&strace, "ADD", network, &attachment).unwrap();
            if count % 4 == 1 {
                bench.runtime.gc(network, &[]).unwrap();
            } else {
                bench.runtime.del(network, &attachment).unwrap();
            }
            bench.assert_clean(&format!("ADD killed at {name} number {count}"));
            assert!(!oracle::links(&sandbox).unwrap().contains("eth0"), "ADD killed at {name} number {count}");
            if output.status.success() {
                break;
            }
            killed += 1;
        }
        assert!(killed > 0, "no {name} at all");
    }
}

fn flannel(bench: &Bench) -> Network {
    let env = bench.directory("subnet.env");
    let lines = "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    std::fs::write(&env, lines).unwrap();
    let plugin = json!({
        "type": "flannel", "subnetFile": env, "dataDir": bench.directory("flannel"), "delegate": {"type": "ptp"},
        "ipam": {"dataDir": bench.directory("networks")},
    });
    bench.network("1.1.0", json!([plugin]))
}

#[test]
fn a_killed_add_of_flannel_over_ptp_is_undone() {
    let bench = Bench::new(Whose::Ours);
    kill_add(&bench, &flannel(&bench), &["sendto", "rename", "write"]);
}

/// What somebody else removes is told by CHECK; the pods that come later work all the same.
#[test]
fn a_flushed_ruleset_is_noticed() {
    let bench = Bench::new(Whose::Ours);
    let bridge =
        json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": bench.host_local()});
    let network = bench.network("1.1.0", json!([bridge, {"type": "firewall"}]));
    let pod = bench.attach(&network, "box1");
    bench.runtime.check(&network, &pod.attachment).unwrap();
    oracle::nft(bench.node(), "flush ruleset").unwrap();
    let error = bench.runtime.check(&network, &pod.attachment).unwrap_err();
    assert!(error.to_string().contains("pods4 of nft table inet cni-masquerade-net1 lacks 10.88.0.2"), "{error}");
    let later = bench.attach(&network, "box2");
    assert_eq!(bench.seen(later.sandbox.network(), OUTSIDE.parse().unwrap()), "192.0.2.1");
    for pod in [pod, later] {
        bench.runtime.del(&network, &pod.attachment).unwrap();
    }
    bench.assert_clean("after DEL");
}

/// A configuration that no longer masquerades, and addresses that change hands.
#[test]
fn del_removes_what_it_made_and_nobody_elses() {
    let bench = Bench::new(Whose::Ours);
    let plugin = |masquerade: bool| {
        json!([{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": masquerade, "ipam": {
            "type": "static", "addresses": [{"address": "10.88.0.7/24", "gateway": "10.88.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        }}])
    };
    let network = bench.network("1.0.0", plugin(true));
    let old = bench.attach(&network, "box1");
    let elements = || -> Value { oracle::nft(bench.node(), "list set inet cni-masquerade-net1 pods4").unwrap().into() };
    assert!(elements().as_str().unwrap().contains("10.88.0.7 comment \"net1/box1/eth0\""), "{}", elements());
    drop(old.sandbox);
    // The next one with the address takes over, and a late DEL of the former leaves it alone.
    let new = bench.attach(&network, "box2");
    bench.runtime.del(&network, &old.attachment).unwrap();
    assert!(elements().as_str().unwrap().contains("box2"), "{}", elements());
    assert_eq!(bench.seen(new.sandbox.network(), OUTSIDE.parse().unwrap()), "192.0.2.1");
    bench.runtime.del(&bench.network("1.0.0", plugin(false)), &new.attachment).unwrap();
    assert!(!elements().as_str().unwrap().contains("10.88.0.7"), "{}", elements());
}
