//! Hostile input to the real executable, in a namespace of its own: whatever a runtime, a broken conflist or a bad disk
//! hands over, the answer is a CNI error or a result, never a panic, and a refused ADD leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{Node, eth0, ip, with_environment};
use kernel::netns::{Netns, isolate_mounts};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

/// A small generator with a fixed seed (xorshift64*): the same run every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

/// A node with one pod, both at the mercy of whoever writes configurations.
struct Victim {
    node: Node,
    pod: Netns,
    working_directory: std::path::PathBuf,
}

impl Victim {
    fn new() -> Self {
        // Where a configuration was robbed of its directories, the default ones are not the machine's.
        isolate_mounts().unwrap();
        for directory in ["/var/lib/cni", "/run/cni"] {
            std::fs::create_dir_all(directory).unwrap();
            let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", directory]).status().unwrap();
            assert!(mounted.success(), "mounting on {directory}");
        }
        let node = Node::new();
        let working_directory = node.dir.path().join("working/directory");
        std::fs::create_dir_all(&working_directory).unwrap();
        Victim { node, pod: Netns::create().unwrap(), working_directory }
    }

    fn config(&self, plugin: &str) -> Value {
        let networks = self.node.networks();
        match plugin {
            "flannel-rs" => json!({
                "cniVersion": "1.1.0", "name": "net", "type": "flannel-rs",
                "subnetFile": self.node.subnet_file(), "dataDir": networks,
            }),
            "flannel" => json!({
                "cniVersion": "1.1.0", "name": "net", "type": "flannel", "subnetFile": self.node.subnet_file(),
                "dataDir": self.node.dir.path().join("flannel"), "ipam": {"dataDir": networks},
                "delegate": {"type": "ptp", "ipMasq": true, "mtu": 1400},
            }),
            "tuning" | "firewall" => json!({
                "cniVersion": "1.1.0", "name": "net", "type": plugin, "dataDir": self.node.dir.path().join("tuning"),
                "mac": "02:00:00:00:00:09", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
                "ingressPolicy": "open", "backend": "iptables", "prevResult": {
                    "cniVersion": "1.1.0", "interfaces": [{"name": "lo", "sandbox": "x"}],
                    "ips": [{"address": "10.9.0.9/24", "interface": 0}],
                },
            }),
            _ => json!({
                "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br7", "isDefaultGateway": true,
                "mtu": 1400, "hairpinMode": true, "forceAddress": false, "runtimeConfig": {"mac": "02:00:00:00:00:09"},
                "ipam": {
                    "type": "host-local", "dataDir": networks, "routes": [{"dst": "10.0.0.0/8"}],
                    "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.99"}]],
                },
            }),
        }
    }

    fn run(&self, verb: &str, env: &[(&str, &[u8])], stdin: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-plugin"));
        with_environment(&mut command, verb, eth0("c1", &self.pod), &self.pod.path());
        // Where a relative path of the configuration leads.
        command.current_dir(&self.working_directory);
        for (name, value) in env {
            command.env(name, OsStr::from_bytes(value));
        }
        self.node.output(&mut command, stdin)
    }

    /// How many links and addresses the pod has of the node.
    fn made(&self) -> (usize, usize) {
        (self.node.veths().len(), self.node.reservations().len())
    }
}

/// The rules for every answer: success, or status 1 and an error object with a known code and a message.
fn judge(verb: &str, input: &[u8], output: &Output) -> bool {
    let shown = || format!("{verb} {:?} -> {output:?}", String::from_utf8_lossy(input));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{}", shown());
    match output.status.code() {
        Some(0) => true,
        Some(1) => {
            let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", shown()));
            let code = error["code"].as_u64().unwrap_or_else(|| panic!("{}", shown()));
            assert!(matches!(code, 1..=8 | 11 | 50 | 51 | 100..=999), "{}", shown());
            assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{}", shown());
            false
        }
        _ => panic!("{}", shown()),
    }
}

fn damaged(dice: &mut Dice, text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(text.len());
        match dice.roll(5) {
            0 => text[at] = dice.roll(256) as u8,
            1 => text.truncate(at.max(1)),
            2 => drop(text.remove(at)),
            3 => text.insert(at, b"{}[]\",:0-9ex\\"[dice.roll(13)]),
            _ => {
                let end = (at + dice.roll(24)).min(text.len());
                let piece = text[at..end].to_vec();
                text.splice(at..at, piece);
            }
        }
        if text.is_empty() {
            text.push(b'{');
        }
    }
    text
}

/// Values that parse as JSON but are not what anybody means.
fn odd(dice: &mut Dice) -> Value {
    let long = "a".repeat(5000);
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("../up"),
        json!("/proc/none"),
        json!("10.9.0.0/33"),
        json!("::/0"),
        json!("0.0.0.0/0"),
        json!("fe80::1%eth0"),
        json!("\u{0}"),
        json!(long),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!([{"subnet": "10.9.0.0/31"}]),
        json!(["10.9.0.5/24", 7]),
    ];
    odd[dice.roll(odd.len())].clone()
}

fn replace_somewhere(dice: &mut Dice, value: &mut Value) {
    let replacement = odd(dice);
    let mut here = value;
    loop {
        let children = match &*here {
            Value::Object(object) => object.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if children == 0 || dice.roll(4) == 0 {
            *here = replacement;
            return;
        }
        let chosen = dice.roll(children);
        here = match here {
            Value::Object(object) => object.values_mut().nth(chosen).unwrap(),
            Value::Array(list) => &mut list[chosen],
            _ => unreachable!(),
        };
    }
}

#[test]
fn damaged_configurations_are_refused_or_work_and_leave_nothing() {
    let victim = Victim::new();
    let mut dice = Dice(0x5eed_0001);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..300 {
        let plugins = ["flannel-rs", "bridge", "flannel", "tuning", "firewall"];
        let mut config = victim.config(plugins[round % plugins.len()]);
        let text = match round % 3 {
            0 => damaged(&mut dice, config.to_string().as_bytes()),
            _ => {
                replace_somewhere(&mut dice, &mut config);
                config.to_string().into_bytes()
            }
        };
        if judge("ADD", &text, &victim.run("ADD", &[], &text)) {
            accepted += 1;
        } else {
            refused += 1;
            assert_eq!(victim.made(), (0, 0), "a refused ADD left something: {}", String::from_utf8_lossy(&text));
        }
        for verb in ["CHECK", "STATUS", "GC", "DEL"] {
            judge(verb, &text, &victim.run(verb, &[], &text));
        }
        // Whatever it was named, the network of an accepted configuration is released by the same configuration.
        if victim.made().0 > 0 {
            let good = victim.config("bridge").to_string();
            judge("DEL", good.as_bytes(), &victim.run("DEL", &[], good.as_bytes()));
        }
        assert_eq!(victim.made().0, 0);
    }
    assert!(refused > 50 && accepted > 5, "{refused} refused, {accepted} accepted: the dice are loaded");
}

#[test]
fn hostile_environments_are_refused() {
    let victim = Victim::new();
    let config = victim.config("flannel-rs").to_string();
    let long = [b'a'; 70_000];
    let hostile: [(&str, &[u8]); 14] = [
        ("CNI_COMMAND", b"EXPLODE"),
        ("CNI_COMMAND", b"\xff\xfe"),
        ("CNI_CONTAINERID", b""),
        ("CNI_CONTAINERID", b"../../../etc/passwd"),
        ("CNI_CONTAINERID", b"a b"),
        ("CNI_CONTAINERID", b"\xff"),
        ("CNI_IFNAME", b""),
        ("CNI_IFNAME", b"averyveryverylongname"),
        ("CNI_IFNAME", b"a/b"),
        ("CNI_IFNAME", b".."),
        ("CNI_NETNS", b"/etc/passwd"),
        ("CNI_NETNS", b"/proc/self/ns/net"),
        ("CNI_NETNS", b"/no/such/namespace"),
        ("CNI_ARGS", b"IP"),
    ];
    for (name, value) in hostile {
        let output = victim.run("ADD", &[(name, value)], config.as_bytes());
        assert!(!judge("ADD", value, &output), "{name}={:?} was accepted", String::from_utf8_lossy(value));
        assert_eq!(victim.made(), (0, 0), "{name}={:?}", String::from_utf8_lossy(value));
    }
    // An address that is none of ours, and identifiers as long as the system lets them be.
    for args in ["IP=10.200.0.1", "IP=fish", "IP=10.9.0.0", "IP=10.9.0.1", "MAC=fish"] {
        let output = victim.run("ADD", &[("CNI_ARGS", args.as_bytes())], config.as_bytes());
        assert!(!judge("ADD", args.as_bytes(), &output), "{args} was accepted");
    }
    judge("ADD", b"long id", &victim.run("ADD", &[("CNI_CONTAINERID", &long[..])], config.as_bytes()));
    judge("DEL", b"long id", &victim.run("DEL", &[("CNI_CONTAINERID", &long[..])], config.as_bytes()));
    assert_eq!(victim.made(), (0, 0));
}

#[test]
fn hostile_previous_results_are_refused_or_harmless() {
    let victim = Victim::new();
    let config = victim.config("bridge");
    let added = victim.run("ADD", &[], config.to_string().as_bytes());
    assert!(judge("ADD", b"good", &added), "{added:?}");
    let result: Value = serde_json::from_slice(&added.stdout).unwrap();
    let mut dice = Dice(0x5eed_0002);
    for _ in 0..100 {
        let mut hostile = result.clone();
        replace_somewhere(&mut dice, &mut hostile);
        let mut config = config.clone();
        config["prevResult"] = hostile;
        let text = config.to_string();
        judge("CHECK", text.as_bytes(), &victim.run("CHECK", &[], text.as_bytes()));
    }
    let mut config = config;
    config["prevResult"] = result;
    let check = victim.run("CHECK", &[], config.to_string().as_bytes());
    assert!(judge("CHECK", b"the true result", &check), "{check:?}");
    for _ in 0..30 {
        let mut config = config.clone();
        replace_somewhere(&mut dice, &mut config["prevResult"]);
        let text = config.to_string();
        assert!(
            judge("DEL", text.as_bytes(), &victim.run("DEL", &[], text.as_bytes())),
            "DEL must not depend on it: {text}"
        );
    }
    assert_eq!(victim.made(), (0, 0));
}

#[test]
fn hostile_subnet_files_are_told_apart_from_good_ones() {
    let victim = Victim::new();
    let config = victim.config("flannel-rs").to_string();
    let path = victim.node.subnet_file();
    let good = std::fs::read(&path).unwrap();
    let mut dice = Dice(0x5eed_0003);
    for _ in 0..100 {
        std::fs::write(&path, damaged(&mut dice, &good)).unwrap();
        let text = std::fs::read(&path).unwrap();
        judge("STATUS", &text, &victim.run("STATUS", &[], config.as_bytes()));
        judge("ADD", &text, &victim.run("ADD", &[], config.as_bytes()));
        assert!(
            judge("DEL", &text, &victim.run("DEL", &[], config.as_bytes())),
            "DEL must not depend on the subnet file"
        );
        assert_eq!(victim.made(), (0, 0), "{}", String::from_utf8_lossy(&text));
    }
    std::fs::remove_file(&path).unwrap();
    let status = victim.run("STATUS", &[], config.as_bytes());
    let error: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(error["code"], 50);
    assert!(error["msg"].as_str().unwrap().contains(path.to_str().unwrap()), "{error}");
    assert!(judge("DEL", b"", &victim.run("DEL", &[], config.as_bytes())));
}

/// A name that is legal and yet too long for a file: ADD says so, and DEL has nothing to do.
#[test]
fn a_container_whose_name_is_no_file_name_can_be_deleted() {
    let victim = Victim::new();
    let long = "c".repeat(300);
    let mut tuning = victim.config("tuning");
    tuning["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
    ip(&victim.pod, "link add eth0 type bridge");
    for config in [victim.config("flannel"), tuning] {
        let failure = victim.node.add(eth0(&long, &victim.pod), &config).unwrap_err();
        assert!(failure.code == 5 && failure.msg.contains("File name too long"), "{failure:?}");
        victim.node.del(eth0(&long, &victim.pod), &config).unwrap();
    }
}
