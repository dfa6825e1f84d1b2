//! A real API server, where there is one, checks what is for it as strictly as it can. (What nodes make of the manifest on a
//! real Kubernetes is in e2e/tests/kubelet.)

use crate::chart;
use crate::objects::{OVERLAYS, manifest, overlaid};
use e2e::kubernetes::{ControlPlane, missing};
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use kernel::netns::Netns;
use serde_json::json;
use std::net::Ipv4Addr;

#[test]
fn a_real_api_server_takes_every_variant() {
    if missing().iter().any(|program| *program != "kubelet") {
        e2e::not_tested("the manifests on a real API server: it is not in $KUBEBUILDER_ASSETS or PATH");
        return;
    }
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let (work, network) = (WorkDir::new().unwrap(), Netns::create().expect("the tests need root"));
    for command in ["link set lo up", "addr add 192.0.2.1/24 dev lo"] {
        oracle::ip(&network, command).unwrap();
    }
    let address = Ipv4Addr::new(192, 0, 2, 1).into();
    let plane = ControlPlane::start(&network, address, "10.244.0.0/16", &work.path().join("plane")).unwrap();
    let file = work.path().join("objects.json");
    let apply = |objects: Vec<serde_json::Value>, more: &[&str]| {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&file, list.to_string()).unwrap();
        let apply = ["apply", "--validate=strict", "--filename", file.to_str().unwrap()];
        plane.kubectl(&[&apply, more].concat())
    };
    apply(manifest(), &[]).unwrap();
    let variants = OVERLAYS.map(overlaid).into_iter().chain([chart::by_default()]);
    variants.for_each(|objects| drop(apply(objects, &["--dry-run=server"]).unwrap()));
    let mut wrong = manifest();
    wrong.last_mut().unwrap()["spec"]["template"]["spec"]["hostnetwork"] = true.into();
    let refused = apply(wrong, &["--dry-run=server"]).unwrap_err().to_string();
    assert!(refused.contains("hostnetwork"), "{refused}");
}
