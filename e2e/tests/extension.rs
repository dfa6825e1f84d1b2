//! The extension backend: commands of the administrator's make the routes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Settings, Store};
use e2e::eventually;
use e2e::probe::ask;
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(15);

/// Programs routes and writes a diary for each node; fails while there is a file `broken`.
const SCRIPT: &str = r#"#!/bin/sh
read data
echo "$1 NETWORK=$NETWORK SUBNET=$SUBNET IPV6SUBNET=$IPV6SUBNET PUBLIC_IP=$PUBLIC_IP data=$data arg=$2" >> "$DIARY.$NODE_NAME"
[ "$1" = add ] && [ -e "$DIARY.broken" ] && { echo "no luck today" >&2; exit 7; }
case "$1" in
  pre) echo "data of $NODE_NAME"; echo noise >&2 ;;
  add) ip route replace "$SUBNET" via "$PUBLIC_IP" ;;
  remove) ip route del "$SUBNET" via "$PUBLIC_IP" ;;
esac
"#;

struct Scene {
    work: WorkDir,
    cluster: Cluster,
}

impl Scene {
    fn new(store: Store) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let work = WorkDir::new().unwrap();
        let script = work.path().join("script.sh");
        // Nodes are told apart by their addresses.
        let text = SCRIPT.replace("$DIARY", &work.path().join("diary").display().to_string());
        let text = text.replace(
            "$NODE_NAME",
            "$(basename \"$(ip -o -4 address show dev eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/')\")",
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let command = |what: &str| format!("'{}' {what} \"$SUBNET\"", script.display());
        let network = json!({"Network": "10.42.0.0/16", "Backend": {
            "Type": "extension",
            "PreStartupCommand": command("pre"),
            "PostStartupCommand": command("post"),
            "SubnetAddCommand": command("add"),
            "SubnetRemoveCommand": command("remove"),
            "ShutdownCommand": command("shutdown"),
        }});
        let settings = Settings { network, ..Settings::new(Backend::HostGw, store) };
        let cluster = Cluster::new(&settings, work.path()).unwrap();
        Scene { work, cluster }
    }

    fn start_node(&mut self) -> usize {
        self.cluster.add_node().unwrap().start_daemon().unwrap();
        self.cluster.nodes.len() - 1
    }

    fn diary(&self, node: usize) -> Vec<String> {
        let address = self.cluster.nodes[node].host.address;
        let text = fs::read_to_string(self.work.path().join(format!("diary.{address}"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn broken(&self) -> impl AsRef<Path> {
        self.work.path().join("diary.broken")
    }

    fn subnet(&self, node: usize) -> String {
        self.cluster.nodes[node].subnet_file().unwrap()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
    }

    /// What the node's own commands have been told of another.
    fn entry(&self, word: &str, node: usize) -> String {
        let (subnet, address) = (self.subnet(node), self.cluster.nodes[node].host.address);
        format!("{word} NETWORK= SUBNET={subnet} IPV6SUBNET= PUBLIC_IP={address} data=data of {address} arg={subnet}")
    }
}

fn commands_make_the_cluster(store: Store) {
    let mut scene = Scene::new(store);
    for _ in 0..2 {
        scene.start_node();
    }
    for node in &mut scene.cluster.nodes {
        node.wait_ready().unwrap();
        node.add_pod(&format!("{}-pod", node.host.name)).unwrap();
    }
    let (first, second) = (&scene.cluster.nodes[0], &scene.cluster.nodes[1]);
    for (from, to) in [(first, second), (second, first)] {
        let answer = eventually(LIMIT, || ask(from.pods[0].sandbox.network(), to.pods[0].address, SECOND)).unwrap();
        assert_eq!(answer.seen, from.pods[0].address);
    }
    assert_eq!(first.subnet_file().unwrap()["FLANNEL_MTU"], "1500");
    let (subnet, address) = (scene.subnet(0), first.host.address);
    let wanted = [
        "pre NETWORK= SUBNET= IPV6SUBNET= PUBLIC_IP= data= arg=".to_owned(),
        format!("post NETWORK=10.42.0.0/16 SUBNET={subnet} IPV6SUBNET= PUBLIC_IP={address} data= arg={subnet}"),
        scene.entry("add", 1),
    ];
    assert_eq!(scene.diary(0), wanted);

    // A restart runs them all again, as flannel does, and the end of the daemon its own.
    assert!(scene.cluster.nodes[0].stop_daemon().unwrap().success());
    scene.cluster.nodes[0].start_daemon().unwrap();
    scene.cluster.nodes[0].wait_ready().unwrap();
    let diary = scene.diary(0);
    assert_eq!(diary.len(), 7, "{diary:#?}");
    assert!(diary[3].starts_with("shutdown ") && diary[4..] == wanted, "{diary:#?}");
    // Several passes later nothing has been run again; and nobody has taken the commands' routes for a predecessor's.
    std::thread::sleep(SECOND);
    assert_eq!(scene.diary(0), diary);
    assert_eq!(scene.diary(1).len(), 3);
    let routes = oracle::ip_list(&scene.cluster.nodes[0].host.network, "route show proto boot").unwrap();
    assert!(routes.iter().any(|route| route["dst"] == scene.subnet(1)), "{routes:?}");
}

#[test]
fn file_and_commands() {
    commands_make_the_cluster(Store::File);
}

#[test]
fn etcd_and_commands() {
    commands_make_the_cluster(Store::Etcd);
}

#[test]
fn a_command_that_fails_is_tried_again_and_one_for_a_node_that_is_gone_is_run_once() {
    let mut scene = Scene::new(Store::File);
    scene.start_node();
    scene.cluster.nodes[0].wait_ready().unwrap();
    fs::write(scene.broken(), "").unwrap();
    scene.start_node();
    // The second node has the same trouble with the first one.
    eventually(LIMIT, || match scene.cluster.nodes[0].health("/readyz")? {
        (503, body) if body.contains("SubnetAddCommand for") && body.contains("exit status: 7: no luck today") => {
            Ok(())
        }
        (status, body) => Err(format!("{status} {body}").into()),
    })
    .unwrap();
    fs::remove_file(scene.broken()).unwrap();
    for node in &mut scene.cluster.nodes {
        node.wait_ready().unwrap();
    }
    let gone = scene.entry("remove", 1);
    // Its lease is given up, as when an administrator takes a node away.
    scene.cluster.nodes[1].kill_daemon().unwrap();
    let key = scene.subnet(1).replace('/', "-");
    fs::remove_file(scene.work.path().join("store/subnets").join(key)).unwrap();
    eventually(LIMIT, || match scene.diary(0).last() {
        Some(last) if *last == gone => Ok(()),
        last => Err(format!("{last:?} instead of {gone}").into()),
    })
    .unwrap();
    // The diary comes before the deed.
    eventually(LIMIT, || {
        let routes = oracle::ip_list(&scene.cluster.nodes[0].host.network, "route show proto boot")?;
        let is_left = routes.iter().any(|route| route["dst"] == scene.subnet(1));
        if is_left { Err(format!("{routes:?}").into()) } else { Ok(()) }
    })
    .unwrap();
}
