//! One node on which the DaemonSet's pod runs: the image from its archive, the init container, the daemon with the rights of
//! the manifest and no others, and pods that are attached to what it has set up.

use crate::kubelet::{Kubelet, Pod};
use crate::objects::{manifest, only, overlaid, pod};
use e2e::api_server::ApiServer;
use e2e::containerd::Containerd;
use e2e::image::{Image, Platform};
use e2e::workdir::WorkDir;
use e2e::{eventually, oracle, pause, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Duration;

const IMAGE: &str = concat!("localhost/flanneld-rs:", env!("CARGO_PKG_VERSION"));
const LIMIT: Duration = Duration::from_secs(60);
/// CAP_NET_ADMIN alone (linux/capability.h: bit 12).
const NET_ADMIN: &str = "0000000000001000";

/// A node with an interface of the underlay, and containerd with our image.
pub(crate) struct Node {
    pub(crate) network: Netns,
    containerd: Containerd,
    pub(crate) work: WorkDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let (work, network) = (WorkDir::new().unwrap(), Netns::create().expect("the tests need root"));
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name beyond",
            "addr add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
            "link set beyond up",
            "route add default via 192.0.2.254",
        ] {
            oracle::ip(&network, command).unwrap();
        }
        let containerd = Containerd::start_bare(&network, work.path()).unwrap();
        let archive = work.path().join("image.tar");
        fs::write(&archive, image().archive().unwrap()).unwrap();
        containerd.import(&archive).unwrap();
        Node { network, containerd, work }
    }

    pub(crate) fn kubelet(&self) -> Kubelet<'_> {
        Kubelet::new(&self.containerd, self.work.path())
    }

    pub(crate) fn file(&self, path: &str) -> std::path::PathBuf {
        self.containerd.file(path)
    }

    /// What a probe of a kubelet's gets from the daemon.
    fn health(&self, path: &str) -> e2e::Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 8471));
        let mut connection = self.network.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))??;
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.0 200") { Ok(answer) } else { Err(answer.into()) }
    }

    pub(crate) fn until_ready(&self, kubelet: &Kubelet, daemon: &Pod) {
        let ready = eventually(LIMIT, || self.health("/readyz"));
        ready.unwrap_or_else(|error| panic!("{error}\n{}", kubelet.log(daemon)));
        self.health("/healthz").unwrap();
    }
}

fn image() -> Image {
    let dist = tools::flanneld().unwrap();
    let platform = Platform::in_directory(pause::ARCHITECTURE, dist.parent().unwrap()).unwrap();
    Image::of_product(IMAGE, vec![platform])
}

pub(crate) fn config_maps(objects: &[Value]) -> BTreeMap<String, Value> {
    let map = only(objects, "ConfigMap");
    BTreeMap::from([(map["metadata"]["name"].as_str().unwrap().to_owned(), map["data"].clone())])
}

/// The pod of the manifest, told where this API server is: in memory, and without the credentials of a pod.
pub(crate) fn asking(api: &ApiServer, node: &Node, mut pod: Value) -> Value {
    api.put_node("node1", &["10.244.7.0/24"]);
    let listener = node.network.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let url = format!("--kube-api-url=http://{}", api.serve(listener).unwrap());
    pod["containers"][0]["args"].as_array_mut().unwrap().push(url.into());
    pod
}

/// A file of /proc/<pid>/status.
fn status_of(process: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// The daemon's process, which is in the node's network namespace and has the image's executable.
fn daemon_process(network: &Netns) -> u32 {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| {
        let process = Path::new("/proc").join(pid.to_string());
        fs::read_link(process.join("exe")).is_ok_and(|exe| exe == Path::new("/flanneld-rs"))
            && fs::metadata(process.join("ns/net")).is_ok_and(|ns| (ns.dev(), ns.ino()) == network.id())
    };
    let mut found = processes.filter(is_it);
    found.next().expect("the daemon runs")
}

#[test]
fn the_manifest_makes_a_node_ready_and_pods_are_attached() {
    let node = Node::new();
    let mut kubelet = node.kubelet();
    let objects = manifest();
    // As a release archive of the reference plugins leaves them: of whoever built it.
    let bin = node.file("/opt/cni/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("bridge"), "somebody else's").unwrap();
    for path in [bin.join("bridge"), bin.clone()] {
        chown(&path, Some(1001), Some(127)).unwrap();
    }
    assert!(!kubelet.network_is_ready());

    let api = ApiServer::new();
    let spec = asking(&api, &node, pod(&objects));
    let daemon = kubelet.start("daemon", &spec, &config_maps(&objects)).unwrap();
    node.until_ready(&kubelet, &daemon);
    for name in tools::PLUGINS {
        let plugin = fs::read(bin.join(name)).unwrap();
        assert_eq!(plugin, fs::read(tools::cni_plugin().unwrap()).unwrap(), "{name}");
    }
    assert_eq!(fs::read_to_string(bin.join("bridge.bak")).unwrap(), "somebody else's");
    let installed = fs::read_to_string(node.file("/etc/cni/net.d/10-flannel.conflist")).unwrap();
    assert_eq!(installed, only(&objects, "ConfigMap")["data"]["cni-conf.json"], "installed as the ConfigMap has it");

    let process = daemon_process(&node.network);
    for (key, value) in [("CapEff", NET_ADMIN), ("CapBnd", NET_ADMIN), ("NoNewPrivs", "1"), ("Seccomp", "2")] {
        assert_eq!(status_of(process, key), value, "{key}");
    }
    let root = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let options = |mount: &str| {
        root.lines().find(|line| line.split(' ').nth(4) == Some(mount)).unwrap().split(' ').nth(5).unwrap()
    };
    assert!(options("/").starts_with("ro") && options("/proc/sys").starts_with("ro"), "{root}");

    // The runtime watches the directory.
    eventually(LIMIT, || if kubelet.network_is_ready() { Ok(()) } else { Err("NetworkReady is false".into()) })
        .unwrap();
    let workload = kubelet.sandbox("web", &[(18080, 80)], false).unwrap();
    let address = kubelet.address(&workload);
    assert!(address.starts_with("10.244.7."), "{address}");
    let object = api.node("node1").unwrap();
    assert_eq!(object["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"], "vxlan", "{object}");
    let ports = || oracle::nft(&node.network, "list table ip cni-plugin-host-ports").unwrap_or_default();
    assert!(ports().contains("18080"));
    // With these rights, the daemon brings back what others flush, its own and the plugins'.
    oracle::nft(&node.network, "flush ruleset").unwrap();
    let restored = || {
        let own = oracle::nft(&node.network, "list table ip flanneld-rs")?;
        if own.contains("masquerade") && ports().contains("18080") { Ok(()) } else { Err(own.into()) }
    };
    eventually(LIMIT, restored).unwrap_or_else(|error| panic!("{error}\n{}", kubelet.log(&daemon)));

    // An update of the DaemonSet: the data path stays, and the next daemon finds everything.
    kubelet.remove(&daemon);
    assert!(oracle::links(&node.network).unwrap().contains("flannel.1"));
    let daemon = kubelet.start("daemon-again", &spec, &config_maps(&objects)).unwrap();
    node.until_ready(&kubelet, &daemon);
    assert_eq!(kubelet.address(&workload), address);
    kubelet.remove(&workload);
    kubelet.remove(&daemon);
}

/// No capability in the manifest is too many.
#[test]
fn with_less_rights_it_fails_and_says_why() {
    let node = Node::new();
    let mut kubelet = node.kubelet();
    let (objects, bin) = (manifest(), node.file("/opt/cni/bin"));
    let api = ApiServer::new();
    let (spec, maps) = (asking(&api, &node, pod(&objects)), config_maps(&objects));
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("bridge"), "somebody else's").unwrap();
    for path in [bin.join("bridge"), bin.clone()] {
        chown(&path, Some(1001), Some(127)).unwrap();
    }
    let mut less = spec.clone();
    less["initContainers"][0]["securityContext"]["capabilities"]["add"] = json!([]);
    let error = kubelet.start("less", &less, &maps).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("/opt/cni/bin") && error.contains("ermission denied"), "{error}");
    let mut less = spec;
    less["containers"][0]["securityContext"]["capabilities"]["add"] = json!([]);
    let daemon = kubelet.start("less", &less, &maps).unwrap();
    let (code, said) = kubelet.last_words(&daemon);
    assert!(code != 0 && said.contains("CAP_NET_ADMIN"), "{code}: {said}");
    kubelet.remove(&daemon);
}

/// Where the kernel has no WireGuard, the daemon carries the packets itself, with the device file of the overlay.
#[test]
fn wireguard_has_what_it_needs() {
    let node = Node::new();
    let mut kubelet = node.kubelet();
    let objects = overlaid("wireguard");
    let api = ApiServer::new();
    let spec = asking(&api, &node, pod(&objects));
    let daemon = kubelet.start("daemon", &spec, &config_maps(&objects)).unwrap();
    node.until_ready(&kubelet, &daemon);
    assert!(oracle::links(&node.network).unwrap().contains("flannel-wg"));
    let key = node.file("/var/lib/flanneld-rs/wireguard.key").metadata().unwrap();
    assert_eq!(key.mode() & 0o777, 0o600);
    kubelet.remove(&daemon);
}

/// No shell, no library, no file but the two executables.
#[test]
fn the_image_runs_without_anything_else() {
    let node = Node::new();
    let mut kubelet = node.kubelet();
    assert!(kubelet.has_image(IMAGE), "imported under another name");
    let objects = manifest();
    let mut spec = pod(&objects);
    spec["containers"][0]["args"] = json!(["--version"]);
    let daemon = kubelet.start("version", &spec, &config_maps(&objects)).unwrap();
    let (code, said) = kubelet.last_words(&daemon);
    assert!(code == 0 && said.contains(concat!("flanneld-rs ", env!("CARGO_PKG_VERSION"))), "{code}: {said}");
    kubelet.remove(&daemon);
}
