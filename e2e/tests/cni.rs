//! CNI scenarios, each run on Debian's reference plugins and on ours: a scenario that is red on the reference is wrong,
//! one that is red on ours only is ours.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::oracle;
use e2e::pod::{Sandbox, first_address};
use e2e::probe::{ask, ask_tcp};
use e2e::runner::{Attachment, Failure, Network, Runtime};
use e2e::tools;
use e2e::workdir::WorkDir;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const GATEWAY: &str = "10.88.0.1";

/// A node without a cluster, and a network on it.
struct Stack {
    work: WorkDir,
    runtime: Runtime,
    network: Network,
    versions: &'static [&'static str],
}

impl Stack {
    fn new(plugins: impl FnOnce(&WorkDir) -> PathBuf, plugin: impl FnOnce(&WorkDir) -> Value) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let work = WorkDir::new().unwrap();
        let node = Netns::create().expect("the tests need root");
        oracle::ip(&node, "link set lo up").unwrap();
        let plugins = plugins(&work);
        let runtime = Runtime { plugins, cache: work.make("results").unwrap(), node };
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin(&work)]});
        Stack { runtime, network: Network::new(list).unwrap(), work, versions: &["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }
    }

    /// bridge and host-local of containernetworking-plugins 1.1.1, which stops at 1.0.0.
    fn reference() -> Self {
        let bridge = tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins").unwrap();
        let directory = bridge.parent().unwrap().to_owned();
        let stack = Stack::new(|_| directory, bridge_config);
        Stack { versions: &["0.3.1", "0.4.0", "1.0.0"], ..stack }
    }

    /// Ours under the reference's names and with its configuration.
    fn bridge() -> Self {
        Stack::new(|work| tools::plugin_directory(&work.path().join("bin")).unwrap(), bridge_config)
    }

    /// Our own type, with a subnet file as the daemon writes it.
    fn native() -> Self {
        let config = |work: &WorkDir| {
            let file = work.path().join("subnet.env");
            let lines =
                "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            fs::write(&file, lines).unwrap();
            json!({"type": "flannel-rs", "bridge": "cbr0", "subnetFile": file, "dataDir": work.path().join("networks")})
        };
        Stack::new(|work| tools::plugin_directory(&work.path().join("bin")).unwrap(), config)
    }

    /// The same with limits of the bandwidth, which makes one device more that could be left.
    fn limited() -> Self {
        let stack = Stack::native();
        let plugin = json!({
            "type": "flannel-rs", "bridge": "cbr0", "ingressRate": 10_000_000, "egressRate": 20_000_000,
            "subnetFile": stack.work.path().join("subnet.env"), "dataDir": stack.work.path().join("networks"),
        });
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin]});
        Stack { network: Network::new(list).unwrap(), ..stack }
    }

    fn node(&self) -> &Netns {
        &self.runtime.node
    }

    fn sandbox(&self, name: &str) -> Sandbox {
        Sandbox::start(name, self.work.path()).unwrap()
    }

    fn attach(&self, name: &str) -> (Sandbox, Attachment, IpAddr) {
        let sandbox = self.sandbox(name);
        let attachment = Attachment::eth0(name, sandbox.path());
        let result = self.runtime.add(&self.network, &attachment).unwrap();
        let address = first_address(&result).unwrap();
        (sandbox, attachment, address)
    }

    fn del(&self, attachment: &Attachment) {
        self.runtime.del(&self.network, attachment).unwrap();
    }

    /// What an attachment may leave in the node: nothing that has to do with it, only what all attachments share.
    fn assert_clean(&self, context: &str) {
        let links = oracle::links(self.node()).unwrap();
        let shared: BTreeSet<String> = ["lo", "cbr0"].map(String::from).into();
        assert!(links.is_subset(&shared), "{context}: links left in the node: {links:?}");
        for (name, content) in oracle::files(&self.work.path().join("networks")).unwrap() {
            let base = name.rsplit('/').next().unwrap();
            assert!(base.parse::<IpAddr>().is_err(), "{context}: reservation left: {name} ({content:?})");
            assert!(!content.contains("box"), "{context}: an attachment is remembered in {name}: {content:?}");
        }
        let mut neighbours = oracle::ip_list(self.node(), "neigh show").unwrap();
        // What nobody answered for leads nowhere; link-local addresses come with every link.
        neighbours.retain(|entry| entry["lladdr"].is_string() && !entry["dst"].as_str().unwrap().starts_with("fe80:"));
        // The reference plugins leave what the kernel learnt, which is what a reused address suffers from.
        let is_reference = self.runtime.plugins.starts_with("/usr/lib/cni");
        assert!(is_reference || neighbours.is_empty(), "{context}: neighbours left: {neighbours:?}");
        let rules = oracle::nft(self.node(), "list ruleset").unwrap();
        assert!(!rules.contains("box") && !rules.contains("10.88.0."), "{context}: rules left: {rules}");
    }
}

fn bridge_config(work: &WorkDir) -> Value {
    json!({
        "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": work.path().join("networks"),
            "ranges": [[{"subnet": "10.88.0.0/24"}]],
        },
    })
}

/// Declares each scenario as one test per stack.
macro_rules! scenarios {
    (everywhere: $($scenario:ident)*; ours: $($own:ident)*; native: $($native:ident)*; limited: $($limited:ident)*) => {
        mod reference {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::reference()); })*
        }
        mod bridge {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::bridge()); })*
            $(#[test] fn $own() { super::$own(&super::Stack::bridge()); })*
        }
        mod native {
            $(#[test] fn $scenario() { super::$scenario(&super::Stack::native()); })*
            $(#[test] fn $own() { super::$own(&super::Stack::native()); })*
            $(#[test] fn $native() { super::$native(&super::Stack::native()); })*
        }
        mod limited {
            $(#[test] fn $limited() { super::$limited(&super::Stack::limited()); })*
        }
    };
}

scenarios! {
    everywhere:
        result_of_add
        result_of_add_in_the_first_versions
        pods_and_node_reach_each_other
        a_pod_reaches_itself_through_the_bridge
        del_can_be_repeated
        del_after_the_namespace_is_gone
        check_tells_a_missing_address
        check_tells_a_missing_route
        the_same_id_can_return
        a_second_add_does_no_harm
        parallel_adds_get_different_addresses;
    ours:
        the_first_packet_arrives
        a_reused_address_answers_at_once
        a_killed_add_is_undone_by_del
        a_killed_del_is_finished_by_del;
    native:
        a_killed_add_is_undone_by_gc
        gc_keeps_what_is_valid
        status_tells_what_is_missing;
    limited:
        a_killed_add_is_undone_by_del
        a_killed_add_is_undone_by_gc
        a_killed_del_is_finished_by_del
        gc_keeps_what_is_valid
}

fn result_of_add(stack: &Stack) {
    for version in stack.versions {
        let network = stack.network.version(version);
        let sandbox = stack.sandbox("box");
        let attachment = Attachment::eth0("box", sandbox.path());
        let result = stack.runtime.add(&network, &attachment).unwrap();
        assert_eq!(result["cniVersion"], *version);
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(address.starts_with("10.88.0.") && address.ends_with("/24"), "{result}");
        assert_eq!(result["ips"][0]["gateway"], GATEWAY);
        let versioned = *version < "1.0.0";
        assert_eq!(result["ips"][0]["version"], if versioned { json!("4") } else { Value::Null }, "{result}");
        let interfaces = result["interfaces"].as_array().unwrap();
        let [bridge, host, container] = interfaces.as_slice() else { panic!("three interfaces wanted: {result}") };
        assert_eq!(result["ips"][0]["interface"], 2);
        assert_eq!(bridge["name"], "cbr0");
        assert_eq!(container["name"], "eth0");
        assert_eq!(container["sandbox"], sandbox.path().display().to_string());
        for (network, interface) in [(stack.node(), bridge), (stack.node(), host), (sandbox.network(), container)] {
            let name = interface["name"].as_str().unwrap();
            let link = &oracle::ip_list(network, &format!("link show dev {name}")).unwrap()[0];
            assert_eq!(link["address"], interface["mac"], "{name}: {result}");
        }
        assert!(host["sandbox"].as_str().unwrap_or_default().is_empty());
        let link = &oracle::ip_list(sandbox.network(), "link show dev eth0").unwrap()[0];
        assert_eq!(link["mtu"], 1450);
        stack.runtime.del(&network, &attachment).unwrap();
    }
}

fn result_of_add_in_the_first_versions(stack: &Stack) {
    for version in ["0.1.0", "0.2.0"] {
        let network = stack.network.version(version);
        let sandbox = stack.sandbox("box");
        let attachment = Attachment::eth0("box", sandbox.path());
        let result = stack.runtime.add(&network, &attachment).unwrap();
        assert!(result["cniVersion"] == version || result["cniVersion"].is_null(), "{result}");
        let address = result["ip4"]["ip"].as_str().unwrap();
        assert!(address.starts_with("10.88.0.") && address.ends_with("/24"), "{result}");
        assert_eq!(result["ip4"]["gateway"], GATEWAY);
        assert!(result["interfaces"].is_null(), "{result}");
        stack.runtime.del(&network, &attachment).unwrap();
        stack.assert_clean(version);
    }
}

fn pods_and_node_reach_each_other(stack: &Stack) {
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
fn the_first_packet_arrives(stack: &Stack) {
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

fn a_pod_reaches_itself_through_the_bridge(stack: &Stack) {
    let (_sandbox, _, _) = stack.attach("box");
    let ports = oracle::bridge(stack.node(), "-json -details link show").unwrap();
    let ports: Value = serde_json::from_str(&ports).unwrap();
    let port = ports.as_array().unwrap().iter().find(|port| port["master"] == "cbr0" && port["ifname"] != "cbr0");
    assert_eq!(port.unwrap()["hairpin"], true, "{ports}");
}

fn del_can_be_repeated(stack: &Stack) {
    let (sandbox, attachment, _) = stack.attach("box");
    for _ in 0..3 {
        stack.del(&attachment);
        assert!(!oracle::links(sandbox.network()).unwrap().contains("eth0"));
        stack.assert_clean("after DEL");
    }
    stack.del(&Attachment::eth0("never-seen", sandbox.path()));
}

fn del_after_the_namespace_is_gone(stack: &Stack) {
    let (sandbox, attachment, _) = stack.attach("box1");
    drop(sandbox);
    stack.del(&attachment);
    wait_for_the_kernel(stack);
    stack.assert_clean("after DEL with the path of a namespace that is gone");
    let (sandbox, attachment, _) = stack.attach("box2");
    stack.del(&Attachment { netns: None, ..attachment });
    drop(sandbox);
    wait_for_the_kernel(stack);
    stack.assert_clean("after DEL without a namespace");
}

/// The reference leaves the host end of the pair to the kernel, which removes it some time after the namespace's last
/// process has ended.
fn wait_for_the_kernel(stack: &Stack) {
    let gone = || match oracle::links(stack.node())?.len() {
        0..=2 => Ok(()),
        _ => Err("the host end of the pair is still there".into()),
    };
    e2e::eventually(SECOND, gone).unwrap();
}

fn check_tells_a_missing_address(stack: &Stack) {
    check_tells_after(stack, "address flush dev eth0");
}

fn check_tells_a_missing_route(stack: &Stack) {
    check_tells_after(stack, "route del default");
}

fn check_tells_after(stack: &Stack, change: &str) {
    let (sandbox, attachment, _) = stack.attach("box");
    stack.runtime.check(&stack.network, &attachment).unwrap();
    oracle::ip(sandbox.network(), change).unwrap();
    let error = stack.runtime.check(&stack.network, &attachment).unwrap_err();
    assert!(error.downcast_ref::<Failure>().unwrap().code.is_some(), "{error}");
}

fn the_same_id_can_return(stack: &Stack) {
    let (_sandbox, attachment, _) = stack.attach("box");
    for _ in 0..5 {
        stack.del(&attachment);
        let result = stack.runtime.add(&stack.network, &attachment).unwrap();
        let gateway: IpAddr = GATEWAY.parse().unwrap();
        assert_eq!(ask(stack.node(), first_address(&result).unwrap(), SECOND).unwrap().seen, gateway);
    }
}

/// Whether a second ADD of the same attachment is refused or answered, the pod works on and one DEL cleans up.
fn a_second_add_does_no_harm(stack: &Stack) {
    let (_sandbox, attachment, address) = stack.attach("box");
    let _ = stack.runtime.add(&stack.network, &attachment);
    assert!(ask(stack.node(), address, SECOND).is_ok());
    stack.del(&attachment);
    stack.assert_clean("after the second ADD and DEL");
}

fn parallel_adds_get_different_addresses(stack: &Stack) {
    let namespaces: Vec<Netns> = (0..64).map(|_| Netns::create().unwrap()).collect();
    let attachments: Vec<Attachment> =
        namespaces.iter().enumerate().map(|(n, netns)| Attachment::eth0(format!("box{n}"), netns.path())).collect();
    let addresses: BTreeSet<IpAddr> = std::thread::scope(|scope| {
        let add = |attachment| scope.spawn(move || stack.runtime.add(&stack.network, attachment).unwrap());
        let running: Vec<_> = attachments.iter().map(add).collect();
        running.into_iter().map(|add| first_address(&add.join().unwrap()).unwrap()).collect()
    });
    assert_eq!(addresses.len(), 64, "{addresses:?}");
    std::thread::scope(|scope| {
        for attachment in &attachments {
            scope.spawn(|| stack.del(attachment));
        }
    });
    stack.assert_clean("after 64 parallel DELs");
}

fn a_reused_address_answers_at_once(stack: &Stack) {
    for number in 0..3 {
        let name = format!("box{number}");
        let sandbox = stack.sandbox(&name);
        let args = "IgnoreUnknown=1;IP=10.88.0.50".to_owned();
        let attachment = Attachment { args, ..Attachment::eth0(&name, sandbox.path()) };
        let result = stack.runtime.add(&stack.network, &attachment).unwrap();
        let address = first_address(&result).unwrap();
        assert_eq!(address.to_string(), "10.88.0.50");
        let start = Instant::now();
        ask(stack.node(), address, SECOND).unwrap();
        let time = start.elapsed();
        assert!(time < Duration::from_millis(50), "pod {number} on the same address answered after {time:?}");
        stack.del(&attachment);
    }
}

/// Runs `verb` once for each system call that it makes, killed at that call, each time followed by `undo` and a look at
/// what is left.
fn kill_everywhere(stack: &Stack, verb: &str, prepare: impl Fn(&Attachment), undo: impl Fn(&Attachment)) {
    tools::from_package("/usr/bin/strace", "strace").unwrap();
    let network = Netns::create().unwrap();
    let attachment = Attachment::eth0("box", network.path());
    let trace = stack.work.path().join("trace");
    let strace = ["/usr/bin/strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e"];
    let call = |filter: &str| {
        prepare(&attachment);
        let wrapper: Vec<&str> = strace.into_iter().chain([filter]).collect();
        let output = stack.runtime.call(&wrapper, verb, &stack.network, &attachment).unwrap();
        undo(&attachment);
        output.status.success()
    };
    // Once in peace, which tells what calls there are, and leaves what all attachments share.
    assert!(call("trace=all"));
    let points = points(&fs::read_to_string(&trace).unwrap());
    assert!(points.len() > 40, "hardly any system calls: {points:?}");
    for (name, count) in points {
        // How often a call is made differs a little from run to run: one that was not killed at this point is fine.
        call(&format!("inject={name}:signal=KILL:when={count}"));
        let context = format!("{verb} killed at {name} number {count}");
        stack.assert_clean(&context);
        assert!(!oracle::links(&network).unwrap().contains("eth0"), "{context}: eth0 is left");
    }
}

/// The system calls in a trace: name, and the how-manieth of its name, as strace counts for its injection. Those that
/// change nothing but the process's own memory are left out.
fn points(trace: &str) -> Vec<(String, usize)> {
    let own =
        ["execve", "brk", "mmap", "munmap", "mprotect", "madvise", "arch_prctl", "prlimit64", "getrandom", "futex"];
    let mut counts = BTreeMap::<&str, usize>::new();
    let calls = trace.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    for (name, _) in calls.filter(|(name, _)| !own.contains(name) && !name.starts_with("rt_sig")) {
        *counts.entry(name).or_default() += 1;
    }
    counts.into_iter().flat_map(|(name, count)| (1..=count).map(move |number| (name.to_owned(), number))).collect()
}

fn a_killed_add_is_undone_by_del(stack: &Stack) {
    kill_everywhere(stack, "ADD", |_| {}, |attachment| stack.del(attachment));
}

fn a_killed_del_is_finished_by_del(stack: &Stack) {
    let prepare = |attachment: &Attachment| {
        stack.runtime.add(&stack.network, attachment).unwrap();
    };
    kill_everywhere(stack, "DEL", prepare, |attachment| stack.del(attachment));
}

fn a_killed_add_is_undone_by_gc(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    kill_everywhere(stack, "ADD", |_| {}, |_| stack.runtime.gc(&network, &[]).unwrap());
}

fn gc_keeps_what_is_valid(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    let (_one, _, address_of_one) = stack.attach("box1");
    let (two, attachment, _) = stack.attach("box2");
    stack.runtime.gc(&network, &[("box1", "eth0")]).unwrap();
    assert!(ask(stack.node(), address_of_one, SECOND).is_ok());
    assert!(!oracle::links(two.network()).unwrap().contains("eth0"));
    stack.del(&attachment);
    stack.runtime.gc(&network, &[]).unwrap();
    stack.assert_clean("after GC of everything");
}

fn status_tells_what_is_missing(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    stack.runtime.status(&network).unwrap();
    let file = stack.work.path().join("subnet.env");
    fs::remove_file(&file).unwrap();
    let error = stack.runtime.status(&network).unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert_eq!(failure.code, Some(50), "{failure}");
    assert!(failure.message.contains("subnet.env"), "{failure}");
}
