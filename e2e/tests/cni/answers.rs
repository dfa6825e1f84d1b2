//! What plugins answer: results, and what CHECK and STATUS find.

use crate::stack::{GATEWAY, Stack};
use e2e::oracle;
use e2e::runner::{Attachment, Failure};
use serde_json::{Value, json};
use std::fs;

pub(crate) fn result_of_add(stack: &Stack) {
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

pub(crate) fn result_of_add_in_the_first_versions(stack: &Stack) {
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

pub(crate) fn check_tells_a_missing_address(stack: &Stack) {
    check_tells_after(stack, "address flush dev eth0");
}

pub(crate) fn check_tells_a_missing_route(stack: &Stack) {
    check_tells_after(stack, "route del default");
}

fn check_tells_after(stack: &Stack, change: &str) {
    let (sandbox, attachment, _) = stack.attach("box");
    stack.runtime.check(&stack.network, &attachment).unwrap();
    oracle::ip(sandbox.network(), change).unwrap();
    let error = stack.runtime.check(&stack.network, &attachment).unwrap_err();
    assert!(error.downcast_ref::<Failure>().unwrap().code.is_some(), "{error}");
}

pub(crate) fn status_tells_what_is_missing(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    stack.runtime.status(&network).unwrap();
    let file = stack.work.path().join("subnet.env");
    fs::remove_file(&file).unwrap();
    let error = stack.runtime.status(&network).unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert_eq!(failure.code, Some(50), "{failure}");
    assert!(failure.message.contains("subnet.env"), "{failure}");
}
