//! A node that changes from the reference plugins to ours, or back: pods of both live side by side, and each side tears down
//! what the other made. (What each makes is compared by `e2e/tests/plugins/differential.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Attachment, IPV4, IPV6, Node, Plugins, eth0, host_end, ip};
use kernel::netns::Netns;
use serde_json::json;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

#[test]
fn each_tears_down_what_the_other_made() {
    for (adds, deletes) in [(Plugins::Reference, Plugins::Ours), (Plugins::Ours, Plugins::Reference)] {
        let (node, pod, second) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
        let config = node.bridge("1.0.0", &[IPV4, IPV6]);
        let result = node.call(adds, "ADD", eth0("c1", &pod), &config).unwrap();
        node.call(adds, "ADD", eth0("c2", &second), &config).unwrap();
        let mut last = config.clone();
        last["prevResult"] = result.clone();
        node.call(deletes, "DEL", eth0("c1", &pod), &last).unwrap();
        assert!(node.link(host_end(&result)).is_none(), "{deletes:?} left the link");
        assert!(node.reservations().iter().all(|ip| !ip.to_string().ends_with('2')), "{:?}", node.reservations());
        assert_eq!(node.veths().len(), 1, "the other pod keeps its link");
        // The reference knows nothing of our neighbour entries: they must not be there for ever.
        assert_eq!(
            ip(&node.host, "neigh show nud permanent dev br7").lines().filter(|line| !line.starts_with("ff")).count(),
            0
        );
        node.call(deletes, "DEL", eth0("c2", &second), &config).unwrap();
        ip(&node.host, "neigh flush dev br7");
        // Nor of our records, which are left to GC.
        node.gc(&config, &[]).unwrap();
        node.assert_clean("both deleted");
    }
}

/// A node that changes over with its pods running: new pods of ours beside old ones, which then leave one by one.
#[test]
fn pods_of_both_live_side_by_side() {
    let (node, old, new) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let config = node.bridge("1.0.0", &[IPV4]);
    let old_result = node.call(Plugins::Reference, "ADD", eth0("old", &old), &config).unwrap();
    let bridge = node.link("br7").unwrap();
    let new_result = node.add(eth0("new", &new), &config).unwrap();
    assert_eq!(node.link("br7").unwrap().mac, bridge.mac, "the bridge keeps its address");
    node.check(eth0("old", &old), &config, &old_result).unwrap();
    node.check(eth0("new", &new), &config, &new_result).unwrap();
    // A second interface of an old pod.
    let second = Attachment { ifname: "net1", ..eth0("old", &old) };
    let second_result = node.add(second, &config).unwrap();
    node.check(second, &config, &second_result).unwrap();
    node.gc(&config, &[("old", "eth0"), ("old", "net1"), ("new", "eth0")]).unwrap();
    for (attachment, result) in
        [(eth0("old", &old), &old_result), (second, &second_result), (eth0("new", &new), &new_result)]
    {
        node.check(attachment, &config, result).unwrap();
    }
    for attachment in [eth0("old", &old), second, eth0("new", &new)] {
        node.del(attachment, &config).unwrap();
    }
    node.assert_clean("all deleted");
}

/// The way back: the reference deletes a pod of ours and gives its address to one of its own, with another MAC. The host must
/// find that pod, although an entry that we made still names the old one.
#[test]
fn an_address_that_the_reference_gives_again_is_found() {
    let (node, first, second) = (Node::new(), Netns::create().unwrap(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[IPV4]);
    config["args"] = json!({"cni": {"ips": ["10.9.0.77"]}});
    node.call(Plugins::Ours, "ADD", eth0("c1", &first), &config).unwrap();
    node.call(Plugins::Reference, "DEL", eth0("c1", &first), &config).unwrap();
    node.call(Plugins::Reference, "ADD", eth0("c2", &second), &config).unwrap();
    let server = second.run(|| UdpSocket::bind("10.9.0.77:7").unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let client = node.host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let arrives = || {
        client.send_to(b"?", "10.9.0.77:7").unwrap();
        server.recv_from(&mut [0; 1]).is_ok()
    };
    while !arrives() {
        assert!(Instant::now() < deadline, "{}", ip(&node.host, "neigh show"));
    }
    node.call(Plugins::Reference, "DEL", eth0("c2", &second), &config).unwrap();
}
