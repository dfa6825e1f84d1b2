//! Networks of one node that are kept apart.

use crate::bench::{Bench, Whose};
use e2e::oracle;
use e2e::runner::Network;
use serde_json::json;

/// Two isolated bridges: neither side's pods reach the other's, and both reach their own.
#[test]
fn bridges_are_kept_apart() {
    for whose in [Whose::Ours, Whose::Theirs] {
        let bench = Bench::new(whose);
        let network = |name: &str, bridge: &str, subnet: &str| {
            let ipam = json!({"type": "host-local", "dataDir": bench.directory("networks"),
                              "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]});
            let bridge = json!({"type": "bridge", "bridge": bridge, "isGateway": true, "ipam": ipam});
            let firewall = json!({"type": "firewall", "ingressPolicy": "same-bridge"});
            let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": [bridge, firewall]});
            Network::new(list).unwrap().with_state_in(bench.work.path())
        };
        let (blue, red) = (network("blue", "blue0", "10.90.0.0/24"), network("red", "red0", "10.91.0.0/24"));
        let (one, two, other) = (bench.attach(&blue, "box1"), bench.attach(&blue, "box2"), bench.attach(&red, "box3"));
        assert_eq!(bench.seen(one.sandbox.network(), two.address), one.address.to_string(), "{whose:?}");
        assert_eq!(bench.seen(one.sandbox.network(), other.address), "silence", "{whose:?}");
        assert_eq!(bench.seen(other.sandbox.network(), one.address), "silence", "{whose:?}");
        assert_eq!(bench.seen(bench.node(), other.address), "10.91.0.1", "{whose:?}");
        if whose == Whose::Ours {
            bench.runtime.check(&blue, &one.attachment).unwrap();
            oracle::nft(bench.node(), "delete element inet cni-firewall pods4 { 10.90.0.2 }").unwrap();
            let error = bench.runtime.check(&blue, &one.attachment).unwrap_err();
            assert!(error.to_string().contains("lacks 10.90.0.2"), "{error}");
        }
    }
}
