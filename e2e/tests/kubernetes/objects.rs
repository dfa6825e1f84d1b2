//! The objects in `conf/`, as `kubectl apply`, its kustomize and helm would see them.

use crate::kubelet::{list, text};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const OVERLAYS: [&str; 5] = ["host-gw", "wireguard", "dual-stack", "etcd", "take-over"];

pub(crate) fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

/// Every document of a YAML text.
pub(crate) fn parse(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// The manifest.
pub(crate) fn manifest() -> Vec<Value> {
    parse(&fs::read_to_string(conf().join("kubernetes/flanneld-rs.yaml")).unwrap())
}

/// The only object of a kind.
pub(crate) fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    let [only] = found[..] else { panic!("{} objects of kind {kind}", found.len()) };
    only
}

/// The pod that the DaemonSet makes.
pub(crate) fn pod(objects: &[Value]) -> Value {
    only(objects, "DaemonSet")["spec"]["template"]["spec"].clone()
}

/// The manifest with an overlay over it: as much of kustomize as the overlays use, which `overlays.rs` compares with the real
/// one where there is a kubectl.
pub(crate) fn overlaid(overlay: &str) -> Vec<Value> {
    let directory = conf().join("kustomize").join(overlay);
    let text_of = |directory: &Path| fs::read_to_string(directory.join("kustomization.yaml")).unwrap();
    let [kustomization] = &parse(&text_of(&directory))[..] else { panic!("one document") };
    assert_eq!(list(&kustomization["resources"]), [Value::from("../../kubernetes")]);
    let [base] = &parse(&text_of(&directory.join("../../kubernetes")))[..] else { panic!("one document") };
    assert_eq!(list(&base["resources"]), [Value::from("flanneld-rs.yaml")]);
    let mut objects = manifest();
    for patch in list(&kustomization["patches"]) {
        let [patch] = &parse(&text(&patch["patch"]))[..] else { panic!("one document") };
        let is_of = |object: &Value| {
            object["kind"] == patch["kind"]
                && ["name", "namespace"].iter().all(|key| object["metadata"][key] == patch["metadata"][key])
        };
        let at =
            objects.iter().position(is_of).unwrap_or_else(|| panic!("{overlay} patches what is not there: {patch}"));
        if patch["$patch"] == "delete" {
            objects.remove(at);
        } else {
            merge(&mut objects[at], patch);
        }
    }
    objects
}

/// A strategic merge: of maps by key, of lists whose entries have a name (or a mount path) by that, and of others not at all.
pub(crate) fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => merge_maps(into, patch),
        (Value::Array(into), Value::Array(patch)) if patch.iter().all(|entry| key(entry).is_some()) => {
            for entry in patch {
                match into.iter_mut().find(|present| key(present) == key(entry)) {
                    Some(present) => merge(present, entry),
                    None => into.push(entry.clone()),
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn merge_maps(into: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match (value, into.get_mut(key)) {
            (Value::Null, _) => drop(into.remove(key)),
            (_, Some(present)) => merge(present, value),
            (_, None) => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

fn key(entry: &Value) -> Option<&Value> {
    entry.get("mountPath").or_else(|| entry.get("name"))
}
