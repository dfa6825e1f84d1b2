//! The manifest and its overlays: valid for the API, consistent in themselves, and understood by the executables.

use crate::kubelet::{list, text, texts};
use crate::objects::{OVERLAYS, conf, manifest, only, overlaid, parse, pod};
use e2e::tools;
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::options::Options;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

fn every_variant() -> Vec<(String, Vec<Value>)> {
    let overlays = OVERLAYS.map(|overlay| (overlay.to_owned(), overlaid(overlay)));
    [("manifest".to_owned(), manifest())].into_iter().chain(overlays).collect()
}

/// What the API does not know is left out on the way through its types.
fn accepted<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    serde_json::to_value(typed).unwrap()
}

pub(crate) fn check_schema(variant: &str, objects: &[Value]) {
    for object in objects {
        let accepted = match object["kind"].as_str().unwrap() {
            "Namespace" => accepted::<Namespace>(object),
            "ServiceAccount" => accepted::<ServiceAccount>(object),
            "ClusterRole" => accepted::<ClusterRole>(object),
            "ClusterRoleBinding" => accepted::<ClusterRoleBinding>(object),
            "ConfigMap" => accepted::<ConfigMap>(object),
            "DaemonSet" => accepted::<DaemonSet>(object),
            kind => panic!("{variant}: {kind}"),
        };
        assert_eq!(&accepted, object, "{variant}: the API leaves something out");
    }
}

#[test]
fn every_object_is_what_the_api_takes() {
    for (variant, objects) in every_variant() {
        check_schema(&variant, &objects);
    }
    let mut wrong = manifest();
    let daemon_set = wrong.last_mut().unwrap();
    daemon_set["spec"]["template"]["spec"]["hostnetwork"] = true.into();
    assert_ne!(accepted::<DaemonSet>(daemon_set), *daemon_set, "a misspelt key is noticed");
}

/// No verb that kube-flannel's role does not have, and nothing but the role.
#[test]
fn rights_are_no_wider_than_flannels() {
    let objects = manifest();
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]);
    assert_eq!(only(&objects, "ClusterRole")["rules"], rules);
    for (variant, objects) in every_variant() {
        let pod = pod(&objects);
        for container in list(&pod["initContainers"]).iter().chain(list(&pod["containers"])) {
            let rights = &container["securityContext"];
            assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]), "{variant}");
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{variant}");
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{variant}");
        }
        assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null(), "{variant}");
    }
}

/// A kubelet starts no pod of which it misses a volume; what a node has not got, the daemon does without.
#[test]
fn nothing_has_to_be_on_a_node_before_the_pod() {
    for (variant, objects) in every_variant() {
        for volume in list(&pod(&objects)["volumes"]).iter().filter(|volume| volume["hostPath"].is_object()) {
            assert_eq!(volume["hostPath"]["type"], "DirectoryOrCreate", "{variant}: {volume}");
        }
    }
}

/// Flags are flags of the daemon, what they name is mounted, and the configurations are read by those that they are for.
#[test]
fn the_daemon_understands_its_arguments_and_its_config_map() {
    for (variant, objects) in every_variant() {
        let pod = pod(&objects);
        let container = &pod["containers"][0];
        let args = texts(&container["args"]);
        let command = ["flanneld-rs".to_owned()].into_iter().chain(args.iter().cloned());
        let options = Options::parse_go_style(command).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(options.kubernetes.kube_subnet_mgr, variant != "etcd", "{variant}");
        let mounts: Vec<String> =
            list(&container["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"])).collect();
        let named = args.iter().filter_map(|arg| arg.split_once('=')).map(|(_, value)| value);
        let named = named.filter(|value| value.starts_with("/etc"));
        let defaults =
            [&options.state_dir, &options.host_ports_dir, &options.attachments_dir].map(|path| path.to_str().unwrap());
        let subnet_file = options.subnet_file.to_str().unwrap();
        for path in named.chain(defaults).chain([subnet_file]) {
            let is_in = |mount: &String| path == mount || path.starts_with(&format!("{mount}/"));
            assert!(mounts.iter().any(is_in), "{variant}: {path} is in no volume");
        }
        let volumes: BTreeSet<String> = list(&pod["volumes"]).iter().map(|volume| text(&volume["name"])).collect();
        let used = list(&pod["initContainers"]).iter().chain(list(&pod["containers"]));
        let used = used.flat_map(|container| list(&container["volumeMounts"])).map(|mount| text(&mount["name"]));
        assert_eq!(used.collect::<BTreeSet<_>>(), volumes, "{variant}");
        for probe in ["livenessProbe", "readinessProbe"] {
            let probe = &container[probe]["httpGet"];
            assert_eq!(probe["port"], options.healthz_port, "{variant}");
            assert_eq!(probe["host"], options.healthz_ip.to_string(), "{variant}");
        }
        if let Some(map) = objects.iter().find(|object| object["kind"] == "ConfigMap") {
            check_config_map(&variant, map);
        }
    }
}

pub(crate) fn check_config_map(variant: &str, map: &Value) {
    NetworkConfig::parse(&text(&map["data"]["net-conf.json"])).unwrap_or_else(|error| panic!("{variant}: {error}"));
    let list_of_plugins: Value = serde_json::from_str(&text(&map["data"]["cni-conf.json"])).unwrap();
    for plugin in list(&list_of_plugins["plugins"]) {
        assert!(tools::PLUGINS.contains(&plugin["type"].as_str().unwrap()), "{variant}: {plugin}");
    }
}

/// The conflist of a node under Kubernetes is that of one without, but for the bridge, which is kube-flannel's.
#[test]
fn the_conflist_is_the_usual_one_on_flannels_bridge() {
    let objects = manifest();
    let mut list: Value = serde_json::from_str(&text(&only(&objects, "ConfigMap")["data"]["cni-conf.json"])).unwrap();
    let bridge = list["plugins"][0].as_object_mut().unwrap().remove("bridge");
    assert_eq!(bridge, Some("cni0".into()));
    let usual: Value = serde_json::from_str(&fs::read_to_string(conf().join("10-flannel.conflist")).unwrap()).unwrap();
    assert_eq!(list, usual);
}

#[test]
fn the_image_is_that_of_this_version() {
    let pod = pod(&manifest());
    for container in list(&pod["initContainers"]).iter().chain(list(&pod["containers"])) {
        assert_eq!(container["image"], format!("localhost/flanneld-rs:{}", env!("CARGO_PKG_VERSION")));
    }
}

/// What the overlays lead to is what the real kustomize makes of them. It is in kubectl.
#[test]
#[allow(clippy::disallowed_methods, reason = "kubectl is the judge")]
fn kubectl_agrees_on_the_overlays() {
    for overlay in OVERLAYS {
        let built = Command::new("kubectl").arg("kustomize").arg(conf().join("kustomize").join(overlay)).output();
        let Ok(built) = built else {
            e2e::not_tested("the kustomize overlays as kubectl builds them: there is no kubectl in PATH");
            return;
        };
        assert!(built.status.success(), "{overlay}: {}", String::from_utf8_lossy(&built.stderr));
        let (mut theirs, mut ours) = (parse(&String::from_utf8(built.stdout).unwrap()), overlaid(overlay));
        for objects in [&mut theirs, &mut ours] {
            objects.iter_mut().for_each(in_order);
            objects.sort_by_key(|object| text(&object["kind"]));
        }
        assert_eq!(theirs, ours, "{overlay}");
    }
}

/// Without what says nothing: the order of volumes and mounts, and the line end that kustomize takes from a ConfigMap's text.
fn in_order(object: &mut Value) {
    match object {
        Value::Array(entries) => {
            entries.iter_mut().for_each(in_order);
            if entries.iter().all(|entry| entry.get("name").is_some()) {
                entries.sort_by_key(|entry| text(&entry["name"]));
            }
        }
        Value::Object(entries) => entries.values_mut().for_each(in_order),
        Value::String(text) => *text = text.trim_end().to_owned(),
        _ => {}
    }
}
