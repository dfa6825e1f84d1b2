//! Results in every version: golden files (checked by hand against the reference library), the specification's own
//! example, and round trips.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test fails by panicking

use cni_spec::{AddResult, Code, Dns, Interface, IpAssignment, NetworkConfig, Route, SpecVersion};
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::net::IpAddr;

fn golden(version: SpecVersion) -> String {
    let path = format!("{}/tests/golden/result-{version}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read(text: &str, version: SpecVersion) -> AddResult {
    AddResult::from_json(&serde_json::from_str(text).unwrap(), version).unwrap()
}

#[test]
fn one_result_in_every_version_to_the_byte() {
    let newest = read(&golden(SpecVersion::LATEST), SpecVersion::LATEST);
    assert_eq!(newest.ips.len(), 3, "the golden result has two IPv4 addresses and one IPv6 address");
    assert_eq!(newest.interface_of(&newest.ips[0]).unwrap().name, "eth0");
    for version in SpecVersion::ALL {
        assert_eq!(newest.to_text(version).unwrap(), golden(version), "{version}");
    }
}

#[test]
fn every_golden_file_reads_and_prints_unchanged() {
    for version in SpecVersion::ALL {
        let text = golden(version);
        let value: Value = serde_json::from_str(&text).unwrap();
        let result = AddResult::from_json(&value, version).unwrap();
        assert_eq!(result.to_text(version).unwrap(), text, "{version}");
        assert_eq!(result.to_json(version).unwrap(), value, "{version}");
    }
}

#[test]
fn the_specifications_example_comes_back_as_prev_result() {
    // spec appendix "Examples": what `bridge` answers, and what `tuning` and `portmap` receive
    let example = json!({
        "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2 }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "interfaces": [
            { "name": "cni0", "mac": "00:11:22:33:44:55" },
            { "name": "veth3243", "mac": "55:44:33:22:11:11" },
            { "name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue" }
        ],
        "dns": { "nameservers": ["10.1.0.1"] }
    });
    for version in [SpecVersion::V1_0_0, SpecVersion::V1_1_0] {
        let config =
            json!({ "cniVersion": version.as_str(), "name": "dbnet", "type": "tuning", "prevResult": example });
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
        let mut expected = example.clone();
        expected["cniVersion"] = version.as_str().into();
        assert_eq!(config.prev_result.unwrap().to_json(version).unwrap(), expected);
    }
}

#[test]
fn a_result_without_address_has_no_form_before_0_3_0() {
    for version in SpecVersion::ALL {
        let told = AddResult::default().to_text(version);
        if version <= SpecVersion::V0_2_0 {
            assert_eq!(told.unwrap_err().code, Code::IncompatibleVersion);
        } else {
            assert_eq!(told.unwrap(), format!("{{\n    \"cniVersion\": \"{version}\",\n    \"dns\": {{}}\n}}"));
        }
    }
}

#[test]
fn other_versions_of_the_same_format_are_read_and_others_refused() {
    let stated = |version: &str| json!({ "cniVersion": version, "ips": [] });
    for (config, result, fits) in [
        (SpecVersion::V1_1_0, "1.0.0", true),
        (SpecVersion::V1_0_0, "1.1.0", true),
        (SpecVersion::V0_3_1, "0.4.0", true),
        (SpecVersion::V0_1_0, "0.2.0", true),
        (SpecVersion::V0_4_0, "1.0.0", false),
        (SpecVersion::V1_0_0, "0.4.0", false),
        (SpecVersion::V0_3_0, "0.2.0", false),
        (SpecVersion::V1_0_0, "9.9.9", false),
    ] {
        assert_eq!(AddResult::from_json(&stated(result), config).is_ok(), fits, "{result} in {config}");
    }
}

#[test]
fn malformed_results_are_refused_by_the_path_of_the_field() {
    for (result, path) in [
        (json!([]), "result"),
        (json!({ "ips": {} }), "result.ips"),
        (json!({ "ips": [{}] }), "result.ips[0].address"),
        (json!({ "ips": [{ "address": "10.1.0.5" }] }), "result.ips[0].address"),
        (json!({ "ips": [{ "address": "10.1.0.5/255.255.0.0" }] }), "result.ips[0].address"),
        (json!({ "ips": [{ "address": "10.1.0.5/33" }] }), "result.ips[0].address"),
        (json!({ "ips": [{ "address": "10.1.0.5/+8" }] }), "result.ips[0].address"),
        (json!({ "ips": [{ "address": "10.1.0.5/16", "interface": -1 }] }), "result.ips[0].interface"),
        (json!({ "ips": [{ "address": "10.1.0.5/16", "gateway": "here" }] }), "result.ips[0].gateway"),
        (json!({ "interfaces": [{ "name": "a" }, { "name": 5 }] }), "result.interfaces[1].name"),
        (json!({ "interfaces": [{ "name": "a", "mtu": 4294967296u64 }] }), "result.interfaces[0].mtu"),
        (json!({ "routes": [{ "gw": "10.1.0.1" }] }), "result.routes[0].dst"),
        (json!({ "routes": [{ "dst": "::/0", "scope": 256 }] }), "result.routes[0].scope"),
        (json!({ "dns": { "search": [7] } }), "result.dns.search[0]"),
    ] {
        let error = AddResult::from_json(&result, SpecVersion::LATEST).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{result}");
        assert!(error.msg.starts_with(&format!("{path}: ")), "{result}: {error}");
    }
    let swapped = json!({ "ip4": { "ip": "fd00::5/64" } });
    let error = AddResult::from_json(&swapped, SpecVersion::V0_2_0).unwrap_err();
    assert!(error.msg.starts_with("result.ip4.ip: "), "{error}");
}

#[test]
fn the_family_is_read_off_the_address() {
    // Debian's loopback 1.1.1 answers 0.4.0 with addresses that lack "version".
    let result = read(r#"{"ips":[{"address":"127.0.0.1/8"},{"version":"","address":"::1/128"}]}"#, SpecVersion::V0_4_0);
    let told = result.to_json(SpecVersion::V0_4_0).unwrap();
    assert_eq!((&told["ips"][0]["version"], &told["ips"][1]["version"]), (&json!("4"), &json!("6")));
}

#[test]
fn zero_and_empty_and_null_are_absent_as_in_go() {
    let text = r#"{"interfaces":null,"ips":[{"address":"10.1.0.5/16","gateway":"","interface":null}],
        "routes":[{"dst":"0.0.0.0/0","gw":null,"mtu":0,"priority":0,"table":0}],"dns":null}"#;
    let result = read(text, SpecVersion::LATEST);
    let mut route = Route::new("0.0.0.0/0".parse().unwrap(), None);
    route.table = Some(0);
    let ip = IpAssignment { interface: None, address: "10.1.0.5/16".parse().unwrap(), gateway: None };
    assert_eq!(result, AddResult { ips: vec![ip], routes: vec![route], ..AddResult::default() });
}

prop_compose! {
    fn network()(address: IpAddr, length in 0u8..=128) -> IpNetwork {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNetwork::new(address, length.min(most)).unwrap()
    }
}

prop_compose! {
    fn interface()(
        name in ".{0,20}", mac in "([0-9a-f]{2}:){5}[0-9a-f]{2}|", mtu in option::of(1u32..), sandbox in ".{0,20}",
        socket_path in ".{0,20}", pci_id in ".{0,12}",
    ) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

prop_compose! {
    fn route()(
        dst in network(), gw: Option<IpAddr>, mtu in option::of(1u32..), advmss in option::of(1u32..),
        priority in option::of(1u32..), table: Option<u32>, scope: Option<u8>,
    ) -> Route {
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn ip()(interface: Option<usize>, address in network(), gateway: Option<IpAddr>) -> IpAssignment {
        IpAssignment { interface, address, gateway }
    }
}

prop_compose! {
    fn result()(
        interfaces in vec(interface(), 0..4), ips in vec(ip(), 0..4), routes in vec(route(), 0..4),
        nameservers in vec(".{0,9}", 0..3), domain in ".{0,9}", search in vec(".{0,9}", 0..3),
        options in vec(".{0,9}", 0..3),
    ) -> AddResult {
        AddResult { interfaces, ips, routes, dns: Dns { nameservers, domain, search, options } }
    }
}

/// What remains of a result in 0.3.0 to 1.0.0.
fn without_the_news_of_1_1_0(mut result: AddResult) -> AddResult {
    for interface in &mut result.interfaces {
        (interface.mtu, interface.socket_path, interface.pci_id) = (None, String::new(), String::new());
    }
    for route in &mut result.routes {
        *route = Route::new(route.dst, route.gw);
    }
    result
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn the_newest_version_loses_nothing(result in result()) {
        let text = result.to_text(SpecVersion::V1_1_0).unwrap();
        prop_assert_eq!(read(&text, SpecVersion::V1_1_0), result);
    }

    #[test]
    fn versions_in_between_lose_only_what_they_lack(result in result()) {
        let expected = without_the_news_of_1_1_0(result.clone());
        for version in [SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0, SpecVersion::V1_0_0] {
            prop_assert_eq!(&read(&result.to_text(version).unwrap(), version), &expected);
        }
    }

    #[test]
    fn old_versions_keep_the_first_address_of_each_family_with_its_routes(result in result()) {
        for version in [SpecVersion::V0_1_0, SpecVersion::V0_2_0] {
            let Ok(text) = result.to_text(version) else {
                prop_assert!(result.ips.is_empty());
                continue;
            };
            let old = read(&text, version);
            for is_ipv4 in [true, false] {
                let first = result.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4);
                let kept: Vec<_> = old.ips.iter().filter(|ip| ip.address.is_ipv4() == is_ipv4).collect();
                let expected = first.map(|ip| IpAssignment { interface: None, ..ip.clone() });
                prop_assert_eq!(kept, expected.iter().collect::<Vec<_>>());
                let routes = result.routes.iter().filter(|route| first.is_some() && route.dst.is_ipv4() == is_ipv4);
                let kept = old.routes.iter().filter(|route| route.dst.is_ipv4() == is_ipv4).count();
                prop_assert_eq!(kept, routes.count());
            }
            prop_assert_eq!(&old.dns, &result.dns);
            prop_assert_eq!(old.to_text(version).unwrap(), text);
        }
    }
}
