//! What reaches what, and how soon.

use crate::stack::{GATEWAY, SECOND, Stack};
use e2e::oracle;
use e2e::pod::first_address;
use e2e::probe::{ask, ask_tcp};
use e2e::runner::Attachment;
use kernel::netns::Netns;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn pods_and_node_reach_each_other(stack: &Stack) {
    let (one, _, address_of_one) = stack.attach("box1");
    let (two, _, address_of_two) = stack.attach("box2");
    for (network, target, own) in [
        (one.network(), address_of_two, address_of_one),
        (two.network(), address_of_one, address_of_two),
        (stack.node(), address_of_one, GATEWAY.parse().unwrap()),
        (stack.node(), address_of_two, GATEWAY.parse().unwrap()),
    ] {
        assert_eq!(ask(network, target, SECOND).unwrap().seen, own);
        assert_eq!(ask_tcp(network, target, SECOND).unwrap().seen, own);
    }
}

/// ADD must not return before the bridge and its port forward, which the kernel arranges in the background, and late on a
/// machine that is busy. (The reference waits for the port only, and loses a packet now and then.)
pub(crate) fn the_first_packet_arrives(stack: &Stack) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let network = Netns::create().unwrap();
            scope.spawn({
                let done = &done;
                // Changes of links keep the kernel's worker busy that also announces carriers.
                move || {
                    while !done.load(Ordering::Relaxed) {
                        oracle::ip(&network, "link add name one type veth peer name two").unwrap();
                        oracle::ip(&network, "link del one").unwrap();
                    }
                }
            });
        }
        let _stop = Stop(&done);
        let lost: Vec<usize> = (0..30).filter(|round| first_packet_is_lost(stack, *round)).collect();
        assert!(lost.is_empty(), "the first packet was lost in rounds {lost:?} of 30");
    });
}

/// Ends the noise, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn first_packet_is_lost(stack: &Stack, round: usize) -> bool {
    let (_sandbox, attachment, address) = stack.attach(&format!("box{round}"));
    let lost = ask(stack.node(), address, Duration::from_millis(500)).is_err();
    stack.del(&attachment);
    lost
}

pub(crate) fn a_pod_reaches_itself_through_the_bridge(stack: &Stack) {
    let (_sandbox, _, _) = stack.attach("box");
    let ports = oracle::bridge(stack.node(), "-json -details link show").unwrap();
    let ports: Value = serde_json::from_str(&ports).unwrap();
    let port = ports.as_array().unwrap().iter().find(|port| port["master"] == "cbr0" && port["ifname"] != "cbr0");
    assert_eq!(port.unwrap()["hairpin"], true, "{ports}");
}

/// The node and the other pods speak to the new owner, and not to whoever they remember.
pub(crate) fn a_reused_address_answers_at_once(stack: &Stack) {
    let (peer, _, _) = stack.attach("peer");
    for number in 0..3 {
        let name = format!("box{number}");
        let sandbox = stack.sandbox(&name);
        let args = "IgnoreUnknown=1;IP=10.88.0.50".to_owned();
        let attachment = Attachment { args, ..Attachment::eth0(&name, sandbox.path()) };
        let result = stack.runtime.add(&stack.network, &attachment).unwrap();
        let address = first_address(&result).unwrap();
        assert_eq!(address.to_string(), "10.88.0.50");
        for (who, from) in [("the node", stack.node()), ("a pod", peer.network())] {
            let start = Instant::now();
            ask(from, address, 3 * SECOND).unwrap_or_else(|error| panic!("{who} to pod {number}: {error}"));
            let time = start.elapsed();
            // The kernel doubts a neighbour of old only after five seconds.
            assert!(time < 2 * SECOND, "{who} had an answer of pod {number} after {time:?}");
        }
        stack.del(&attachment);
    }
}
