//! Every command in conf/kubernetes/README.md: what it names is there.

use crate::kubelet::text;
use crate::objects::{OVERLAYS, conf, manifest, only};
use e2e::tools;
use std::fs;

/// The lines of the `sh` blocks.
fn commands() -> Vec<String> {
    let guide = fs::read_to_string(conf().join("kubernetes/README.md")).unwrap();
    let mut commands = Vec::new();
    let mut inside = false;
    for line in guide.lines().map(str::trim) {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => commands.push(command.to_owned()),
            _ => {}
        }
    }
    commands
}

#[test]
fn commands_name_what_there_is() {
    let root = conf().join("..");
    let makefile = fs::read_to_string(root.join("Makefile")).unwrap();
    let objects = manifest();
    let daemon_set = only(&objects, "DaemonSet");
    let name = format!("daemonset/{}", text(&daemon_set["metadata"]["name"]));
    let selector = format!("app={}", text(&daemon_set["spec"]["selector"]["matchLabels"]["app"]));
    let mut overlays: Vec<&str> = OVERLAYS.to_vec();
    for command in commands() {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["make", target, ref settings @ ..] => {
                assert!(makefile.contains(&format!("\n{target}:")), "{command}");
                let names = settings.iter().filter_map(|word| word.split_once('=')).map(|(name, _)| name);
                let mut variables = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase()));
                let is_there = |name| makefile.lines().any(|line| line.split([' ', ':', '?']).next() == Some(name));
                assert!(variables.all(is_there), "{command}");
            }
            ["ctr", .., "images", "import", archive] => assert!(makefile.contains(archive.trim_start_matches("dist/"))),
            ["kubectl", "apply", "-f", file] => assert!(root.join(file).is_file(), "{command}"),
            ["kubectl", "apply", "-k", overlay] => {
                assert!(root.join(overlay).join("kustomization.yaml").is_file(), "{command}");
                overlays.retain(|known| !overlay.ends_with(known));
            }
            ["helm", "install", _, chart, "--namespace", namespace, "--create-namespace"] => {
                assert!(root.join(chart).join("Chart.yaml").is_file(), "{command}");
                assert_eq!(namespace, daemon_set["metadata"]["namespace"]);
            }
            ["kubectl", "-n", namespace, _, ref rest @ ..] => {
                assert_eq!(namespace, daemon_set["metadata"]["namespace"], "{command}");
                let by_name = rest.contains(&name.as_str()) || rest.join("/").contains(&name);
                let by_label = rest.windows(2).any(|pair| pair == ["--selector", selector.as_str()]);
                assert!(by_name || by_label, "{command}");
            }
            ["kubectl", "drain" | "uncordon", "$NODE", ..] => {}
            // Run by migration.rs.
            ["/opt/cni/bin/cni-plugin", "uninstall", "--bin-dir", "/opt/cni/bin"] => {}
            ["nft", "delete", "table", "ip", table] => {
                let source = fs::read_to_string(root.join("flanneld-rs/src/firewall.rs")).unwrap();
                assert!(source.contains(&format!("{table:?}")), "{command}");
            }
            _ => panic!("what shows that this works? {command}"),
        }
    }
    assert_eq!(overlays, [""; 0], "overlays that the guide does not speak of");
    // The init container and the command of the guide call the plugin as it wants to be called.
    let init = crate::kubelet::texts(&daemon_set["spec"]["template"]["spec"]["initContainers"][0]["command"]);
    assert_eq!(init, ["/cni-plugin", "install", "--bin-dir", "/opt/cni/bin"]);
    assert!(tools::PLUGINS.contains(&"flannel-rs"));
}
