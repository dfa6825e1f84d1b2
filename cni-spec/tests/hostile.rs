//! Bytes that nobody means well with: never a panic, always an answer that a runtime can read. Seeded, so that a
//! failure comes again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test fails by panicking

mod echo;

use cni_spec::{Plugin, answer};
use echo::{Echo, Env, env};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];
const CODES: [u64; 6] = [1, 4, 5, 6, 7, 100];

/// Asks and judges: success, or an error with a code and a message that is not too long.
fn ask(env: &Env, config: &[u8]) -> bool {
    let echo = Echo::default();
    let select = |_: &str| Some(&echo as &dyn Plugin);
    let answer = answer("echo", |name| env.get(name).cloned(), config, select);
    let context = || format!("{env:?} {}", String::from_utf8_lossy(config));
    if answer.status == 0 {
        assert!(answer.stdout.is_empty() || serde_json::from_slice::<Value>(&answer.stdout).is_ok(), "{}", context());
        return true;
    }
    let error: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{}", context()));
    let code = error["code"].as_u64();
    assert!(code.is_some_and(|code| CODES.contains(&code)), "{error} {}", context());
    assert!(error["msg"].as_str().is_some_and(|msg| (1..600).contains(&msg.len())), "{error} {}", context());
    false
}

/// Knuth's 64-bit linear congruential generator: random enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Everything that we read, in one configuration.
fn valid() -> Value {
    let prev_result = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "eth0", "mac": "00:11:22:33:44:55", "mtu": 1450, "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0 }, { "address": "fd00::5/64" }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "table": 254, "scope": 0 }],
        "dns": { "nameservers": ["10.1.0.1"], "search": ["x"], "domain": "y", "options": ["z"] }
    });
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "echo", "mtu": 1450, "fail": false,
        "ipam": { "address": "10.1.0.9/16", "ranges": [[{ "subnet": "10.1.0.0/16", "rangeStart": "10.1.0.2" }]] },
        "prevResult": prev_result,
        "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }]
    })
}

#[test]
fn the_valid_configuration_is_valid() {
    for verb in VERBS {
        assert!(ask(&env(verb), valid().to_string().as_bytes()), "{verb}");
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random(1);
    for round in 0..3_000 {
        let length = random.below(200);
        let config: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        assert!(!ask(&env(VERBS[round % VERBS.len()]), &config));
    }
}

#[test]
fn damaged_bytes_of_a_valid_configuration() {
    let text = valid().to_string().into_bytes();
    let mut random = Random(2);
    let mut refused = 0;
    for round in 0..10_000 {
        let mut config = text.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(config.len());
            match random.below(4) {
                0 => config[at] = random.byte(),
                1 => config[at] ^= 1 << random.below(8),
                2 => drop(config.remove(at)),
                _ => config.truncate(at + 1),
            }
        }
        refused += usize::from(!ask(&env(VERBS[round % VERBS.len()]), &config));
    }
    assert!(refused > 3_000, "only {refused} of 10000 were refused: the damage does no harm");
}

/// Replaces one value somewhere in the tree.
fn replace(tree: &mut Value, with: &Value, random: &mut Random) {
    let children: Vec<&mut Value> = match tree {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    let count = children.len();
    let chosen = if count == 0 { None } else { children.into_iter().nth(random.below(count)) };
    match chosen {
        Some(child) if random.below(4) != 0 => replace(child, with, random),
        Some(child) => *child = with.clone(),
        None => *tree = with.clone(),
    }
}

#[test]
fn values_of_the_wrong_type_size_or_form() {
    let mut nested = json!(1);
    for _ in 0..100 {
        nested = json!([nested]);
    }
    let strange = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(0.5),
        json!(""),
        json!("\u{0}"),
        json!("1.0.0"),
        json!("0.1.0"),
        json!("ß".repeat(50_000)),
        json!("10.1.0.5/"),
        json!("/16"),
        json!("10.1.0.5/99999999999999999999"),
        json!("::ffff:10.1.0.5/96"),
        json!("fe80::1%eth0/64"),
        json!([]),
        json!({}),
        json!([null]),
        json!([[[[]]]]),
        json!({ "": {} }),
        nested,
    ];
    let mut random = Random(3);
    for round in 0..10_000 {
        let mut config = valid();
        for _ in 0..=random.below(2) {
            let with = &strange[random.below(strange.len())];
            replace(&mut config, with, &mut random);
        }
        ask(&env(VERBS[round % VERBS.len()]), config.to_string().as_bytes());
    }
}

#[test]
fn hand_made_mischief() {
    let deep_list = "[".repeat(1_000_000);
    let deep_object = r#"{"a":"#.repeat(500_000);
    let wide = format!(r#"{{"name":"net","ipam":{{"ranges":[{}[]]}}}}"#, "[],".repeat(100_000));
    let duplicates = format!(r#"{{{}"name":"net"}}"#, r#""name":"other","#.repeat(50_000));
    let digits = format!(r#"{{"name":"net","mtu":{}}}"#, "9".repeat(100_000));
    for config in [&deep_list, &deep_object, &wide, &duplicates, &digits] {
        for verb in VERBS {
            ask(&env(verb), config.as_bytes());
        }
    }
    for config in [
        &b"{\"name\":\"\xff\"}"[..],
        b"\xef\xbb\xbf{\"name\":\"net\"}",
        b"{\"name\":\"\\ud800\"}",
        b"{\"name\":\"net\\u0000\"}",
        b"{\"name\":\"net\",\"mtu\":1e400}",
        b"{\"name\":\"net\",\"mtu\":-0}x",
        b"\0",
    ] {
        for verb in VERBS {
            assert!(!ask(&env(verb), config), "{verb} {}", String::from_utf8_lossy(config));
        }
    }
}

#[test]
fn hostile_environments() {
    const NAMES: [&str; 6] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
    let pieces: [&[u8]; 12] = [b"a", b"=", b";", b":", b"/", b".", b"..", b" ", b"\xff", b"\n", b"ADD", b"\xf0\x9f"];
    let config = valid().to_string();
    let mut random = Random(4);
    for round in 0..5_000 {
        let mut env = env(VERBS[round % VERBS.len()]);
        for _ in 0..=random.below(2) {
            let length = random.below(6);
            let value: Vec<u8> = (0..length).flat_map(|_| random.pick(&pieces).to_vec()).collect();
            env.insert(NAMES[random.below(NAMES.len())], OsString::from_vec(value));
        }
        ask(&env, config.as_bytes());
    }
    for name in NAMES {
        let mut env = env("ADD");
        env.insert(name, "x".repeat(2_000_000).into());
        ask(&env, config.as_bytes());
    }
}
