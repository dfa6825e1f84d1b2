//! The Debian package on a node that is at work: dpkg and its scripts in a root directory of their own, the node's network, a
//! real daemon and a real pod. Of systemd there is the word that it runs, and a `systemctl` that writes down what it is told.

use crate::package;
use e2e::cluster::{Backend, Cluster, Settings, Store};
use e2e::node::Node;
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, tools};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A machine that is busy with other tests takes its time.
const LIMIT: Duration = Duration::from_secs(30);

/// What the package's scripts see: the machine's own programs under /bin and /lib, and nothing under /usr but the package.
const PROGRAMS: [(&str, &str); 4] =
    [("/usr/bin", "bin"), ("/usr/sbin", "sbin"), ("/usr/lib", "lib"), ("/usr/lib64", "lib64")];

/// A root directory in which dpkg knows of no package and systemd runs.
fn scratch(root: &Path, node: &Node) {
    for path in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "run/systemd/system", "usr/bin", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        fs::write(root.join(path), "").unwrap();
    }
    for (_, path) in PROGRAMS {
        fs::create_dir(root.join(path)).unwrap();
    }
    fs::create_dir_all(below(root, node.directory())).unwrap();
    let systemctl = root.join("usr/bin/systemctl");
    fs::write(&systemctl, "#!/bin/sh\necho \"$*\" >>/systemctl.log\n").unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap())
}

/// dpkg in the node's network, with mounts that end with it.
fn dpkg(root: &Path, node: &Node, args: &[&str]) -> Output {
    let mut script = String::from("set -e\n");
    let directory = node.directory().to_str().unwrap();
    let shown = PROGRAMS.map(|(from, to)| (from, root.join(to)));
    for (from, to) in
        shown.into_iter().chain(["/proc", "/dev", directory].map(|path| (path, below(root, Path::new(path)))))
    {
        if Path::new(from).exists() {
            script += &format!("mount --rbind '{from}' '{}'\n", to.display());
        }
    }
    script += "exec dpkg \"$@\"\n";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "dpkg", &format!("--root={}", root.display())]).args(args);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    node.host.network.run(|| command.output()).unwrap().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Until then nothing is taken from it; then it is as it was.
#[test]
fn a_node_with_pods_keeps_the_package() {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let work = WorkDir::new().unwrap();
    let package = package(&work.path().join("dist"));
    let mut cluster = Cluster::new(&Settings::new(Backend::Vxlan, Store::File), work.path()).unwrap();
    cluster.add_node().unwrap();
    let (node, root) = (&mut cluster.nodes[0], work.path().join("root"));
    let conflist = node.directory().join("net.d/10-flannel.conflist");
    node.add_flags(&["--cni-conf-dir", conflist.parent().unwrap().to_str().unwrap()]);
    scratch(&root, node);
    let installed = dpkg(&root, node, &["--install", package.to_str().unwrap()]);
    assert!(installed.status.success(), "{}", words(&installed));
    let plugin = root.join("opt/cni/bin/flannel-rs");
    assert!(plugin.exists());
    let file = |name: &str| node.directory().join(name).display().to_string();
    let default = format!(
        "FLANNELD_CNI_CONF_DIR=\"{}\"\n FLANNELD_STATE_DIR='{}'\nFLANNELD_SUBNET_FILE={} \n",
        file("net.d"),
        file("state"),
        file("run/subnet.env")
    );
    fs::write(root.join("etc/default/flanneld-rs"), default).unwrap();
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    node.add_pod("pod").unwrap();

    let told = || fs::read_to_string(root.join("systemctl.log")).unwrap_or_default();
    let before = told();
    let refused = dpkg(&root, node, &["--remove", "flanneld-rs"]);
    let said = words(&refused);
    assert!(!refused.status.success() && said.contains("a pod is still attached"), "{said}");
    assert!(said.contains("remove its pods"), "{said}");
    let since = told().strip_prefix(&before).unwrap().to_owned();
    assert!(!since.contains("stop") && !since.contains("disable"), "{since}");
    assert!(since.contains("start flanneld-rs.service"), "{since}");
    assert!(plugin.exists() && conflist.exists() && root.join("usr/bin/flanneld-rs").exists());

    node.remove_pod("pod").unwrap();
    // DEL leaves what outlasts its answer to a process of its own.
    eventually(LIMIT, || match oracle::links(&node.host.network)?.iter().any(|name| name.starts_with("veth")) {
        true => Err("the pod's device is still there".into()),
        false => Ok(()),
    })
    .unwrap();
    // What systemd would do.
    assert!(node.stop_daemon().unwrap().success());
    let removed = dpkg(&root, node, &["--remove", "flanneld-rs"]);
    assert!(removed.status.success(), "{}", words(&removed));
    let since = told();
    assert!(since.contains("stop flanneld-rs.service") && since.contains("disable flanneld-rs.service"), "{since}");
    assert!(!plugin.exists() && !conflist.exists() && !node.directory().join("run/subnet.env").exists());
    let links = oracle::links(&node.host.network).unwrap();
    assert!(links.iter().all(|name| !name.starts_with("flannel") && name != "cbr0"), "{links:?}");
    assert_eq!(oracle::nft(&node.host.network, "list ruleset").unwrap().trim(), "");
}
