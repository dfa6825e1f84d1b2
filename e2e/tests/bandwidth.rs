//! Bandwidth limits: the reference plugins' chain, ours, the two mixed, and the limits that `flannel-rs` has built in.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::pod::{Sandbox, first_address};
use e2e::probe::ask;
use e2e::runner::{Attachment, Failure, Network, Runtime};
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use kernel::netns::Netns;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const REFERENCE: &str = "/usr/lib/cni";
/// Bits per second that the pod may receive, and send.
const TO_POD: u64 = 10_000_000;
const FROM_POD: u64 = 20_000_000;
/// What runtimes ask for when they mean none in particular.
const RUNTIMES_BURST: u64 = (1 << 31) - 1;
/// TCP data in a full frame of the pod network (MTU 1450), with the IP and TCP headers and time stamps taken off.
const PAYLOAD: f64 = 1398.0 / 1464.0;

struct Stack {
    work: WorkDir,
    runtime: Runtime,
    network: Network,
}

impl Stack {
    /// A node with plugins from these places, and a network with these plugins of a chain.
    fn new(places: &[(&str, PathBuf)], chain: impl FnOnce(&WorkDir) -> Value) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let work = WorkDir::new().unwrap();
        let node = Netns::create().expect("the tests need root");
        oracle::ip(&node, "link set lo up").unwrap();
        let plugins = work.make("plugins").unwrap();
        for (name, directory) in places {
            symlink(directory.join(name), plugins.join(name)).unwrap();
        }
        let runtime = Runtime { plugins, cache: work.make("results").unwrap(), node };
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": chain(&work)});
        Stack { runtime, network: Network::new(list).unwrap().with_state_in(work.path()), work }
    }

    fn chain(bridge: PathBuf, bandwidth: PathBuf) -> Self {
        let places = [("bridge", bridge.clone()), ("host-local", bridge), ("bandwidth", bandwidth)];
        Stack::new(&places, |work| {
            let ranges = json!([[{"subnet": "10.88.0.0/24"}]]);
            let ipam = json!({"type": "host-local", "dataDir": work.path().join("networks"), "ranges": ranges});
            json!([
                {"type": "bridge", "bridge": "cbr0", "isDefaultGateway": true, "mtu": 1450, "ipam": ipam},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ])
        })
    }

    fn reference() -> Self {
        Stack::chain(reference(), reference())
    }

    fn mixed() -> Self {
        Stack::chain(reference(), ours())
    }

    fn own() -> Self {
        Stack::chain(ours(), ours())
    }

    fn native() -> Self {
        Stack::new(&[("flannel-rs", ours())], |work| {
            let file = work.path().join("subnet.env");
            let lines =
                "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            fs::write(&file, lines).unwrap();
            let capabilities = json!({"bandwidth": true});
            let networks = work.path().join("networks");
            json!([{"type": "flannel-rs", "subnetFile": file, "dataDir": networks, "capabilities": capabilities}])
        })
    }

    fn node(&self) -> &Netns {
        &self.runtime.node
    }

    /// A pod with these limits.
    fn attach(&self, name: &str, limits: Value) -> (Sandbox, Attachment, Value) {
        let sandbox = Sandbox::start(name, self.work.path()).unwrap();
        let capabilities: Map<String, Value> = [("bandwidth".to_owned(), limits)].into_iter().collect();
        let attachment = Attachment { capabilities, ..Attachment::eth0(name, sandbox.path()) };
        let result = self.runtime.add(&self.network, &attachment).unwrap();
        (sandbox, attachment, result)
    }

    /// The rates of all token buckets of the node in bits per second, with the device of each.
    fn limits(&self) -> Vec<(String, u64)> {
        let listed = oracle::tc(self.node(), "-json qdisc show").unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let rate = |queue: &Value| queue["options"]["rate"].as_u64().unwrap() * 8;
        let buckets = listed.as_array().unwrap().iter().filter(|queue| queue["kind"] == "tbf");
        buckets.map(|queue| (queue["dev"].as_str().unwrap().into(), rate(queue))).collect()
    }

    fn assert_nothing_is_limited(&self) {
        assert_eq!(self.limits(), []);
        let queues = oracle::ip_list(self.node(), "link show type ifb").unwrap();
        assert!(queues.is_empty(), "{queues:?}");
    }

    /// The device in which what comes from the pod queues.
    fn ifb(&self) -> String {
        let found = oracle::ip_list(self.node(), "link show type ifb").unwrap();
        let [ifb] = found.as_slice() else { panic!("one ifb wanted: {found:?}") };
        ifb["ifname"].as_str().unwrap().into()
    }
}

fn reference() -> PathBuf {
    tools::from_package(&format!("{REFERENCE}/bandwidth"), "containernetworking-plugins").unwrap();
    REFERENCE.into()
}

fn ours() -> PathBuf {
    // Links to one executable: what they point to is what matters.
    let directory = std::env::temp_dir().join(format!("flannel-rs-e2e.{}.plugins", std::process::id()));
    tools::plugin_directory(Path::new(&directory)).unwrap()
}

fn limits() -> Value {
    json!({"ingressRate": TO_POD, "ingressBurst": RUNTIMES_BURST, "egressRate": FROM_POD, "egressBurst": RUNTIMES_BURST})
}

macro_rules! stacks {
    (everywhere: $($scenario:ident)*; ours: $($own:ident)*) => {
        mod reference { $(#[test] fn $scenario() { super::$scenario(&super::Stack::reference()); })* }
        mod mixed {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::mixed()); })*
            $(#[test] fn $own() { super::$own(&super::Stack::mixed()); })*
        }
        mod own {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::own()); })*
            $(#[test] fn $own() { super::$own(&super::Stack::own()); })*
        }
        mod native {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::native()); })*
            $(#[test] fn $own() { super::$own(&super::Stack::native()); })*
        }
    };
}

stacks! {
    everywhere:
        the_rates_are_set_and_go_with_the_pod
        without_limits_nothing_is_made
        check_tells_that_the_queue_is_gone
        check_tells_another_rate;
    ours:
        a_limit_holds_from_the_first_second
        a_pod_with_traffic_answers_quickly
        every_difference_is_told
        del_needs_neither_limits_nor_namespace
        gc_removes_what_no_pod_has
        one_direction_alone
        impossible_limits_are_refused
}

fn the_rates_are_set_and_go_with_the_pod(stack: &Stack) {
    let (_sandbox, attachment, result) = stack.attach("box", limits());
    let mut rates: Vec<u64> = stack.limits().into_iter().map(|(_, rate)| rate).collect();
    rates.sort_unstable();
    assert_eq!(rates, [TO_POD, FROM_POD]);
    let ifb = stack.ifb();
    let (_, rate_of_ifb) = stack.limits().into_iter().find(|(device, _)| *device == ifb).unwrap();
    assert_eq!(rate_of_ifb, FROM_POD, "what comes from the pod queues in the ifb");
    // bridge, host's end, pod's end, and the device that was made for the limit.
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 4, "{result}");
    assert_eq!(interfaces[3]["name"], ifb, "{result}");
    assert_eq!(result["ips"][0]["interface"], 2);
    assert!(ask(stack.node(), first_address(&result).unwrap(), Duration::from_secs(1)).is_ok());
    stack.runtime.check(&stack.network, &attachment).unwrap();
    for _ in 0..2 {
        stack.runtime.del(&stack.network, &attachment).unwrap();
        stack.assert_nothing_is_limited();
    }
}

fn without_limits_nothing_is_made(stack: &Stack) {
    let (_sandbox, attachment, result) = stack.attach("box", json!({"ingressRate": 0, "egressRate": 0}));
    stack.assert_nothing_is_limited();
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3, "{result}");
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

fn complaint(stack: &Stack, attachment: &Attachment) -> Failure {
    let error = stack.runtime.check(&stack.network, attachment).unwrap_err();
    error.downcast_ref::<Failure>().unwrap().clone()
}

fn check_tells_that_the_queue_is_gone(stack: &Stack) {
    let (_sandbox, attachment, _) = stack.attach("box", limits());
    oracle::ip(stack.node(), &format!("link delete {}", stack.ifb())).unwrap();
    assert!(complaint(stack, &attachment).code.is_some());
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

fn check_tells_another_rate(stack: &Stack) {
    let (_sandbox, attachment, _) = stack.attach("box", limits());
    let change = format!("qdisc change dev {} root tbf rate 1mbit burst 5000 limit 20000", stack.ifb());
    oracle::tc(stack.node(), &change).unwrap();
    assert!(complaint(stack, &attachment).code.is_some());
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

fn every_difference_is_told(stack: &Stack) {
    let (_sandbox, attachment, result) = stack.attach("box", limits());
    let end = result["interfaces"][1]["name"].as_str().unwrap();
    let ifb = stack.ifb();
    for (tool, change, words) in [
        ("ip", format!("link set {ifb} down"), format!("{ifb} is down")),
        ("tc", format!("qdisc delete dev {end} ingress"), format!("what comes in by {end} is not redirected to {ifb}")),
        (
            "tc",
            format!("qdisc delete dev {end} root"),
            format!("{end} has no limit instead of a limit of {TO_POD} bit/s"),
        ),
        (
            "tc",
            format!("qdisc change dev {ifb} root tbf rate 1mbit burst 5000 limit 20000"),
            format!("{ifb} has a limit of 1000000 bit/s instead of a limit of {FROM_POD} bit/s"),
        ),
        ("ip", format!("link delete {ifb}"), format!("{ifb}, which limits what comes from the pod, is missing")),
    ] {
        match tool {
            "ip" => oracle::ip(stack.node(), &change).unwrap(),
            _ => drop(oracle::tc(stack.node(), &change).unwrap()),
        }
        let failure = complaint(stack, &attachment);
        assert!(failure.message.contains(&words), "after {change}: {failure}");
    }
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

/// The bursts that runtimes ask for would let the first gigabits through at full speed, as the reference plugin does.
fn a_limit_holds_from_the_first_second(stack: &Stack) {
    let (sandbox, attachment, result) = stack.attach("box", limits());
    let pod = first_address(&result).unwrap();
    let gateway: IpAddr = result["ips"][0]["gateway"].as_str().unwrap().parse().unwrap();
    let (node, pod_network) = (stack.node(), sandbox.network());
    for (from, to, address, rate) in [(node, pod_network, pod, TO_POD), (pod_network, node, gateway, FROM_POD)] {
        let part = flood(from, to, address, rate) / (rate as f64 / 8.0);
        assert!((0.95..=1.05).contains(&part), "{part} of {rate} bit/s to {address}");
        // A connection that starts may lose a window, and wait for its timer; it never gets more than the limit.
        let part = first_second_of_tcp(from, to, address) / (rate as f64 / 8.0 * PAYLOAD);
        assert!((0.6..=1.05).contains(&part), "{part} of {rate} bit/s to {address} by TCP");
    }
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

/// Sends datagrams at three times `rate` (bits per second); the bytes per second, in whole frames, that arrive in the first.
fn flood(from: &Netns, to: &Netns, address: IpAddr, rate: u64) -> f64 {
    const SIZE: usize = 1400;
    let server = to.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let client = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        let interval = Duration::from_secs_f64(SIZE as f64 / (3.0 * rate as f64 / 8.0));
        let mut sent = 0;
        while start.elapsed() < Duration::from_millis(1200) {
            if start.elapsed() < interval * sent {
                std::thread::sleep(Duration::from_micros(300));
                continue;
            }
            client.send(&[0; SIZE]).unwrap();
            sent += 1;
        }
    });
    let (mut buffer, mut frames) = ([0; SIZE], 0);
    while start.elapsed() < Duration::from_secs(1) {
        server.recv(&mut buffer).unwrap();
        frames += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().unwrap();
    // With the headers of UDP, IPv4 and Ethernet.
    f64::from(frames * (SIZE as i32 + 8 + 20 + 14)) / seconds
}

/// Bytes per second that one TCP connection brings from `from` to `address` in `to` in its first second.
fn first_second_of_tcp(from: &Netns, to: &Netns, address: IpAddr) -> f64 {
    let server = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let mut client = from.run(|| TcpStream::connect(server.local_addr().unwrap())).unwrap().unwrap();
    let (mut stream, _) = server.accept().unwrap();
    let start = Instant::now();
    // It ends when the other side has seen enough.
    let sender = std::thread::spawn(move || while client.write_all(&[0; 256 << 10]).is_ok() {});
    let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0);
    while start.elapsed() < Duration::from_secs(1) {
        bytes += stream.read(&mut buffer).unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    drop(stream);
    sender.join().unwrap();
    bytes as f64 / seconds
}

/// A stream of half the rate does not build up a queue.
fn a_pod_with_traffic_answers_quickly(stack: &Stack) {
    let (_sandbox, attachment, result) = stack.attach("box", limits());
    let pod = first_address(&result).unwrap();
    let socket = stack.node().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let mut delays: Vec<Duration> = (0..200)
        .map(|_| {
            // 3 ms of half of the rate, in frames of 1442 bytes, to a port that swallows them.
            socket.send_to(&[0; 1400], (pod, 9)).unwrap();
            std::thread::sleep(Duration::from_micros(2300));
            ask(stack.node(), pod, Duration::from_secs(1)).unwrap().rtt
        })
        .collect();
    delays.sort_unstable();
    // A queue would delay most of them; a busy machine delays some all by itself.
    assert!(delays[100] < Duration::from_millis(2), "{:?} {:?} {:?}", delays[100], delays[180], delays[198]);
    stack.runtime.del(&stack.network, &attachment).unwrap();
}

fn del_needs_neither_limits_nor_namespace(stack: &Stack) {
    let (sandbox, attachment, _) = stack.attach("box", limits());
    drop(sandbox);
    let known = Attachment { capabilities: Map::new(), netns: None, ..attachment };
    fs::remove_dir_all(&stack.runtime.cache).unwrap();
    stack.runtime.del(&stack.network, &known).unwrap();
    // At once; what hangs on the pair may go a moment later, with the namespace.
    assert!(oracle::ip_list(stack.node(), "link show type ifb").unwrap().is_empty());
    e2e::eventually(Duration::from_secs(2), || if stack.limits().is_empty() { Ok(()) } else { Err("a limit".into()) })
        .unwrap();
}

fn gc_removes_what_no_pod_has(stack: &Stack) {
    let only_ours = stack.network.version("1.1.0");
    let (_one, valid, _) = stack.attach("box1", limits());
    let kept = stack.ifb();
    let (_two, _, result) = stack.attach("box2", limits());
    let stale = result["interfaces"][3]["name"].as_str().unwrap();
    // The reference's bridge plugin takes part in the chain, and 1.1.1 knows no GC: ask the last plugin only.
    let last = only_ours.last_plugin();
    stack.runtime.gc(&last, &[("box1", "eth0"), ("box2", "eth0")]).unwrap();
    assert_eq!(oracle::ip_list(stack.node(), "link show type ifb").unwrap().len(), 2);
    stack.runtime.gc(&last, &[("box1", "eth0")]).unwrap();
    assert_eq!(stack.ifb(), kept, "{stale} should be gone");
    stack.runtime.check(&stack.network, &valid).unwrap();
    stack.runtime.gc(&last, &[]).unwrap();
    assert!(oracle::ip_list(stack.node(), "link show type ifb").unwrap().is_empty());
}

fn one_direction_alone(stack: &Stack) {
    let (_one, attachment, result) = stack.attach("box1", json!({"ingressRate": TO_POD}));
    let end = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert_eq!(stack.limits(), [(end, TO_POD)]);
    assert!(oracle::ip_list(stack.node(), "link show type ifb").unwrap().is_empty());
    stack.runtime.check(&stack.network, &attachment).unwrap();
    stack.runtime.del(&stack.network, &attachment).unwrap();
    let (_two, attachment, _) = stack.attach("box2", json!({"egressRate": FROM_POD}));
    assert_eq!(stack.limits(), [(stack.ifb(), FROM_POD)]);
    stack.runtime.check(&stack.network, &attachment).unwrap();
    stack.runtime.del(&stack.network, &attachment).unwrap();
    stack.assert_nothing_is_limited();
}

fn impossible_limits_are_refused(stack: &Stack) {
    for (limits, words) in [
        (json!({"ingressBurst": 1000}), "ingressBurst"),
        (json!({"egressRate": 7}), "egressRate"),
        (json!({"egressRate": TO_POD, "unshapedSubnets": ["10.0.0.0/8"]}), "unshapedSubnets"),
    ] {
        let sandbox = Sandbox::start("box", stack.work.path()).unwrap();
        let capabilities: Map<String, Value> = [("bandwidth".to_owned(), limits)].into_iter().collect();
        let attachment = Attachment { capabilities, ..Attachment::eth0("box", sandbox.path()) };
        let error = stack.runtime.add(&stack.network, &attachment).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        stack.runtime.del(&stack.network, &Attachment { capabilities: Map::new(), ..attachment }).unwrap();
        stack.assert_nothing_is_limited();
    }
}
