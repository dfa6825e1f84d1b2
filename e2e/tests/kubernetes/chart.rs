//! The Helm chart: with its default values it is the manifest. Its templates use as little of helm's language as is rendered
//! here; where there is a helm, it is the judge over that.

use crate::manifests::{check_config_map, check_schema};
use crate::objects::{conf, manifest, only, parse, pod};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const TEMPLATES: [&str; 5] = ["serviceaccount", "clusterrole", "clusterrolebinding", "configmap", "daemonset"];

fn chart() -> PathBuf {
    conf().join("helm/flanneld-rs")
}

fn values() -> Value {
    parse(&fs::read_to_string(chart().join("values.yaml")).unwrap()).remove(0)
}

/// What the chart is with its own values.
pub(crate) fn by_default() -> Vec<Value> {
    rendered(&values())
}

/// All templates with these values.
fn rendered(values: &Value) -> Vec<Value> {
    let scope = json!({"Values": values, "Release": {"Namespace": "kube-flannel"}});
    let render = |name: &str| {
        let text = fs::read_to_string(chart().join("templates").join(format!("{name}.yaml"))).unwrap();
        parse(&template(&text, &scope)).remove(0)
    };
    assert_eq!(fs::read_dir(chart().join("templates")).unwrap().count(), TEMPLATES.len());
    TEMPLATES.map(render).to_vec()
}

/// Lines with `{{ expression }}` in them, and `{{- range list }}` ... `{{- end }}` on lines of their own.
fn template(text: &str, scope: &Value) -> String {
    let mut output = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(list) = line.trim().strip_prefix("{{- range ").and_then(|rest| rest.strip_suffix(" }}")) else {
            output += &(substituted(line, scope) + "\n");
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "{{- end }}").collect();
        for entry in evaluate(list, scope).as_array().unwrap() {
            body.iter().for_each(|line| output += &(substituted(line, entry) + "\n"));
        }
    }
    output
}

fn substituted(line: &str, scope: &Value) -> String {
    let mut parts = line.split("{{ ");
    let mut output = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (expression, rest) = part.split_once(" }}").unwrap_or_else(|| panic!("{line}"));
        let value = evaluate(expression, scope);
        output += &value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        output += rest;
    }
    assert!(!output.contains("{{"), "{line} is not rendered here");
    output
}

/// `path`, `toJson path`, and either with `| quote`.
fn evaluate(expression: &str, scope: &Value) -> Value {
    if let Some(inner) = expression.strip_suffix(" | quote") {
        let Value::String(text) = evaluate(inner, scope) else { panic!("{expression} is no text") };
        return Value::String(text).to_string().into();
    }
    if let Some(path) = expression.strip_prefix("toJson ") {
        return evaluate(path, scope).to_string().into();
    }
    let path = expression.strip_prefix('.').unwrap_or_else(|| panic!("{expression} is not evaluated here"));
    let keys = path.split('.').filter(|key| !key.is_empty());
    keys.fold(scope, |value, key| value.get(key).unwrap_or_else(|| panic!("{expression}: no {key}"))).clone()
}

/// The texts of the ConfigMap as the values that they are.
fn read_texts(objects: &mut [Value]) {
    let map = objects.iter_mut().find(|object| object["kind"] == "ConfigMap").unwrap();
    for text in map["data"].as_object_mut().unwrap().values_mut() {
        *text = serde_json::from_str(text.as_str().unwrap()).unwrap();
    }
}

#[test]
fn with_its_defaults_it_is_the_manifest() {
    let mut ours = by_default();
    check_schema("chart", &ours);
    check_config_map("chart", only(&ours, "ConfigMap"));
    let mut objects: Vec<Value> = manifest().into_iter().filter(|object| object["kind"] != "Namespace").collect();
    read_texts(&mut ours);
    read_texts(&mut objects);
    assert_eq!(ours, objects);
}

#[test]
fn every_value_has_its_effect() {
    let mut values = values();
    values["image"] = json!({"repository": "registry.example/net", "tag": "2", "pullPolicy": "Always"});
    values["network"] = json!({"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}});
    values["cniConf"]["plugins"][0]["mtu"] = 1400.into();
    values["args"] = json!(["--etcd-endpoints=https://192.0.2.1:2379", "--iface=eth1"]);
    values["healthzPort"] = 9000.into();
    values["cniBinDir"] = "/opt/bin".into();
    values["cniConfDir"] = "/etc/net.d".into();
    values["updateStrategy"] = json!({"type": "OnDelete"});
    values["resources"] = json!({"limits": {"memory": "64Mi"}});
    values["nodeSelector"] = json!({"pool": "a"});
    values["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    values["volumes"] = json!([{"name": "tun", "hostPath": {"path": "/dev/net", "type": "DirectoryOrCreate"}}]);
    values["volumeMounts"] = json!([{"name": "tun", "mountPath": "/dev/net"}]);
    let objects = rendered(&values);
    check_schema("chart", &objects);
    let (text, pod) = (Value::from(objects.clone()).to_string(), pod(&objects));
    for former in ["localhost", "10.244", "vxlan", "8471", "opt/cni/bin\"}", "kube-subnet-mgr", "RollingUpdate", "32Mi"]
    {
        let left = text.replace(r#"mountPath":"/opt/cni/bin"#, "");
        assert!(!left.contains(former), "{former} in {left}");
    }
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/net:2");
    assert_eq!(container["args"][1], "--iface=eth1");
    assert_eq!(container["volumeMounts"].as_array().unwrap().last().unwrap()["name"], "tun");
    for (here, key) in [(&pod, "nodeSelector"), (&pod, "tolerations"), (container, "resources")] {
        assert_eq!(here[key], values[key], "{key}");
    }
}

/// Each value is described, and nothing else.
#[test]
fn the_schema_is_of_these_values() {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let mut described: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    // helm's own, for charts with charts in them
    described.retain(|key| *key != "global");
    let values = values();
    let mut present: Vec<&String> = values.as_object().unwrap().keys().collect();
    described.sort();
    present.sort();
    assert_eq!(described, present);
    let details: Value = parse(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).remove(0);
    for key in ["version", "appVersion"] {
        assert_eq!(details[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    assert_eq!(values["image"]["tag"], env!("CARGO_PKG_VERSION"));
}

/// helm renders the same, and refuses values that the schema does not allow.
#[test]
#[allow(clippy::disallowed_methods, reason = "helm is the judge")]
fn helm_agrees() {
    let helm = |args: &[&str]| {
        Command::new("helm").args(["template", "net", "--namespace", "kube-flannel"]).arg(chart()).args(args).output()
    };
    let Ok(rendered_by_helm) = helm(&[]) else {
        e2e::not_tested("the Helm chart as helm renders it: there is no helm in PATH");
        return;
    };
    assert!(rendered_by_helm.status.success(), "{}", String::from_utf8_lossy(&rendered_by_helm.stderr));
    let mut theirs = parse(&String::from_utf8(rendered_by_helm.stdout).unwrap());
    let mut ours = rendered(&values());
    for objects in [&mut theirs, &mut ours] {
        objects.sort_by_key(|object| object["kind"].as_str().unwrap().to_owned());
        read_texts(objects);
    }
    assert_eq!(theirs, ours);
    for wrong in [
        "image.pullPolicy=Sometimes",
        "network.Backend.Type=vxlam",
        "healthzPort=0",
        "healthzport=1",
        "args[0]=ip-masq",
        "cniBinDir=opt",
        "network.Network=10.244.0.0",
    ] {
        let refused = helm(&["--set", wrong]).unwrap();
        assert!(!refused.status.success(), "{wrong} is taken");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("schema"), "{wrong}: {refused:?}");
    }
}
