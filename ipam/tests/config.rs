//! Configurations of `host-local`, good, wrong and hostile.
#![allow(clippy::unwrap_used, missing_docs)] // a broken set-up must fail the test at once

use cni_spec::{Arguments, AttachmentId, CniError, Code, NetworkConfig, Sandbox};
use ipam::host_local::{self, DEFAULT_DATA_DIR, HostLocal};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

fn network(mut config: Value) -> NetworkConfig {
    if let Some(object) = config.as_object_mut() {
        for (key, value) in [("cniVersion", "1.0.0"), ("name", "cbr0"), ("type", "bridge")] {
            object.entry(key).or_insert_with(|| value.into());
        }
    }
    NetworkConfig::parse(config.to_string().as_bytes()).unwrap()
}

fn parse(config: Value) -> Result<HostLocal, CniError> {
    HostLocal::parse(&network(config), &Arguments::new())
}

fn sets(ipam: &HostLocal) -> Vec<String> {
    ipam.sets.iter().map(ToString::to_string).collect()
}

#[test]
fn reads_every_place_where_ranges_may_be() {
    let ipam = parse(json!({
        "ipam": {
            "type": "host-local",
            "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.254",
            "ranges": [[{"subnet": "10.2.0.0/24"}, {"subnet": "10.3.0.0/24", "gateway": "10.3.0.2"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.1"}],
        },
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.4.0.0/24"}]]},
    }));
    let ipam = ipam.unwrap();
    assert_eq!(
        sets(&ipam),
        [
            "10.4.0.1-10.4.0.254",
            "10.1.0.10-10.1.0.20",
            "10.2.0.1-10.2.0.254,10.3.0.1-10.3.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff"
        ]
    );
    assert_eq!(ipam.routes.len(), 2);
    assert_eq!(ipam.data_dir, Path::new(DEFAULT_DATA_DIR));
    assert!(ipam.requested.is_empty());
}

#[test]
fn requested_addresses_come_from_three_places() {
    let config = network(json!({
        "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": "/tmp/x"},
        "args": {"cni": {"ips": ["10.1.0.6", "fd00::6/64"]}},
        "runtimeConfig": {"ips": ["10.1.0.7/24", "10.1.0.5"]},
    }));
    let args = Arguments::from([("IP".into(), "10.1.0.5".into()), ("K8S_POD_NAME".into(), "x".into())]);
    let ipam = HostLocal::parse(&config, &args).unwrap();
    let wanted = ["10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00::6"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(ipam.requested, BTreeSet::from(wanted));
    assert_eq!(ipam.data_dir, Path::new("/tmp/x"));
    let args = Arguments::from([("IP".into(), "10.1.0".into())]);
    let error = HostLocal::parse(&config, &args).unwrap_err();
    assert_eq!(error.code, Code::InvalidEnvironment);
    assert!(error.msg.contains("IP=10.1.0 "), "{error}");
}

#[test]
fn says_what_is_wrong_and_where() {
    for (config, word) in [
        (json!({}), "ipam: missing"),
        (json!({"ipam": []}), "ipam: must be an object"),
        (json!({"ipam": {}}), "no IP ranges specified"),
        (json!({"ipam": {"ranges": [[]]}}), "ipam.ranges[0]: empty range set"),
        (json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}, {}]]}}), "ipam.ranges[0][1].subnet"),
        (json!({"ipam": {"subnet": "10.1.0.7/24"}}), "host bits set"),
        (json!({"ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}}), "rangeStart 10.2.0.1 is not in network"),
        (json!({"ipam": {"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.1.0.0/16"}]]}}), "overlap"),
        (json!({"ipam": {"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}}), "ipam.routes[0].dst"),
        (json!({"ipam": {"subnet": "10.1.0.0/24", "dataDir": 7}}), "ipam.dataDir"),
        (json!({"ipam": {"subnet": "10.1.0.0/24"}, "runtimeConfig": {"ips": ["x"]}}), "runtimeConfig.ips[0]"),
        (json!({"ipam": {"subnet": "10.1.0.0/24", "resolvConf": "/nonexistent"}}), "/nonexistent: ENOENT"),
        (
            json!({"cniVersion": "0.2.0", "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}}),
            "more than 1 address per family",
        ),
    ] {
        let error = parse(config).unwrap_err();
        assert!(error.msg.contains(word), "{error}");
    }
}

#[test]
fn a_nodes_subnets_are_range_sets() {
    let config = network(json!({"subnetFile": "/run/x", "dataDir": "/tmp/y"}));
    let subnets = ["10.42.3.1/24", "fd00:42:3::1/64"].map(|subnet| subnet.parse().unwrap());
    let ipam = HostLocal::for_subnets(&config, &Arguments::new(), subnets, Vec::new()).unwrap();
    assert_eq!(sets(&ipam), ["10.42.3.1-10.42.3.254", "fd00:42:3::1-fd00:42:3:0:ffff:ffff:ffff:ffff"]);
    assert_eq!(ipam.sets[0].ranges()[0].gateway().to_string(), "10.42.3.1");
    assert_eq!(ipam.data_dir, Path::new("/tmp/y"));
    let small = HostLocal::for_subnets(&config, &Arguments::new(), ["10.42.3.1/32".parse().unwrap()], Vec::new());
    assert!(small.unwrap_err().msg.contains("too small"));
}

#[test]
fn gives_what_was_asked_for_or_says_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let add = |pod: &str, ips: &[&str]| {
        let ipam = parse(json!({
            "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]], "dataDir": directory.path()},
            "runtimeConfig": {"ips": ips},
        }));
        let id = AttachmentId { container_id: pod.into(), ifname: "eth0".into() };
        let sandbox = Sandbox { id, netns: "/no/such/namespace".into(), args: Arguments::new(), path: Vec::new() };
        let result = host_local::add(&ipam.unwrap(), "cbr0", &sandbox, &|_, _| Ok(()))?;
        Ok::<_, CniError>(result.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(add("a", &["10.1.0.77", "fd00::beef"]).unwrap(), "10.1.0.77/24 fd00::beef/64");
    assert_eq!(add("b", &["fd00::b"]).unwrap(), "10.1.0.78/24 fd00::b/64");
    for (pod, ips, word) in [
        (
            "c",
            ["10.1.0.77"],
            "requested IP address 10.1.0.77 is not available in range set 10.1.0.1-10.1.0.254: it belongs to container a (eth0)",
        ),
        ("c", ["10.1.0.1"], "is the gateway of its subnet"),
        ("c", ["fd00::"], "failed to allocate all requested IPs: fd00::"),
        ("c", ["10.2.0.1"], "failed to allocate all requested IPs: 10.2.0.1"),
        ("a", ["10.1.0.80"], "10.1.0.77 has been allocated to a, duplicate allocation is not allowed"),
    ] {
        let error = add(pod, &ips).unwrap_err();
        assert_eq!(error.code, Code::Ipam);
        assert!(error.msg.contains(word), "{error}");
    }
    // Whoever was refused holds nothing.
    let id = AttachmentId { container_id: "c".into(), ifname: "eth0".into() };
    assert!(host_local::addresses_of(directory.path(), "cbr0", &id).unwrap().is_empty());
}

/// Any JSON value in any place: an answer, never a panic.
#[test]
fn hostile_configurations_are_answered() {
    let good = json!({
        "ipam": {
            "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.254",
            "ranges": [[{"subnet": "fd00::/64"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/x", "resolvConf": "",
        },
        "args": {"cni": {"ips": ["10.1.0.11"]}},
        "runtimeConfig": {"ips": ["10.1.0.11"], "ipRanges": [[{"subnet": "10.4.0.0/24"}]]},
    });
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("\u{0}"),
        json!("0.0.0.0/0"),
        json!("::/0"),
        json!("::/128"),
        json!("255.255.255.255"),
        json!("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/126"),
        json!("10.1.0.0/024"),
        json!("٣.1.0.0/8"),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!(vec![json!("10.1.0.1"); 70]),
        json!({"subnet": "::ffff:10.1.0.0/120"}),
        json!([[{"subnet": "255.255.255.252/30", "rangeStart": "255.255.255.255"}]]),
        json!("x".repeat(100_000)),
    ];
    let mut places = Vec::new();
    collect(&good, &mut String::new(), &mut places);
    assert!(places.len() > 20);
    let (mut accepted, mut refused) = (0, 0);
    for place in &places {
        for value in &values {
            let mut config = good.clone();
            *config.pointer_mut(place).unwrap() = value.clone();
            match parse(config) {
                Ok(_) => accepted += 1,
                Err(error) => {
                    refused += 1;
                    assert!(!error.msg.is_empty() && error.msg.len() < 2000, "{place}: {} bytes", error.msg.len());
                }
            }
        }
    }
    assert!(accepted > 20 && refused > 200, "{accepted} {refused}");
}

fn collect(value: &Value, path: &mut String, places: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let mut path = format!("{path}/{key}");
        places.push(path.clone());
        collect(child, &mut path, places);
    }
}
