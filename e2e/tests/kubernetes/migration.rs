//! A node that changes over from kube-flannel, and back (conf/kubernetes/README.md): what its pods notice, and what is left.
//! What kube-flannel leaves on a node is made by the reference plugins, with the configuration that flannel's own plugin hands
//! on to them; flanneld itself is not needed for it.

use crate::kubelet::Kubelet;
use crate::node::{Node, asking, config_maps};
use crate::objects::{conf, overlaid, pod};
use e2e::api_server::ApiServer;
use e2e::{eventually, oracle, tools};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
const LIMIT: Duration = Duration::from_secs(60);

/// kube-flannel's ConfigMap.
fn config_map() -> BTreeMap<String, Value> {
    let flannel = json!({"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    let conflist = json!({
        "name": "cbr0", "cniVersion": "0.3.1", "plugins": [flannel, {"type": "portmap", "capabilities": {"portMappings": true}}],
    });
    let network = json!({"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}});
    let data = json!({"cni-conf.json": format!("{conflist:#}"), "net-conf.json": format!("{network:#}")});
    BTreeMap::from([("kube-flannel-cfg".to_owned(), data)])
}

/// What Go flannel's plugin makes of that for the reference plugins.
fn handed_on() -> Value {
    let ipam = json!({
        "type": "host-local", "ranges": [[{"subnet": "10.244.7.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}],
    });
    let bridge = json!({
        "type": "bridge", "mtu": 1450, "hairpinMode": true, "isDefaultGateway": true, "isGateway": true, "ipMasq": false,
        "ipam": ipam,
    });
    json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [bridge]})
}

fn install_conflist(node: &Node, list: &Value) {
    fs::create_dir_all(node.file("/etc/cni/net.d")).unwrap();
    fs::write(node.file(CONFLIST), list.to_string()).unwrap();
}

fn reference_plugins(node: &Node) -> std::path::PathBuf {
    let bin = node.file("/opt/cni/bin");
    fs::create_dir_all(&bin).unwrap();
    for name in ["bridge", "host-local", "portmap", "loopback"] {
        let path = tools::from_package(&format!("/usr/lib/cni/{name}"), "containernetworking-plugins").unwrap();
        fs::copy(path, bin.join(name)).unwrap();
    }
    fs::write(bin.join("flannel"), "Go flannel's plugin").unwrap();
    bin
}

fn until_attachable(kubelet: &mut Kubelet) {
    let ready = || if kubelet.network_is_ready() { Ok(()) } else { Err("NetworkReady is false".into()) };
    eventually(LIMIT, ready).unwrap();
}

/// Nothing listens in a pause container: its kernel's refusal is the answer.
fn answers(node: &Node, address: &str) {
    let address = SocketAddr::new(address.parse().unwrap(), 80);
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let refused = node.network.run(connect).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}: {refused}");
}

fn reserved(node: &Node, address: &str) -> bool {
    node.file("/var/lib/cni/networks/cbr0").join(address).exists()
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn there_and_back_again() {
    let node = Node::new();
    let mut kubelet = node.kubelet();
    let bin = reference_plugins(&node);
    install_conflist(&node, &handed_on());
    fs::create_dir_all(node.file("/run/flannel")).unwrap();
    fs::write(node.file("/run/flannel/subnet.env"), SUBNET_ENV).unwrap();
    until_attachable(&mut kubelet);
    let [old, short_lived] = ["old", "short-lived"].map(|name| kubelet.sandbox(name, &[], false).unwrap());
    let addresses = [&old, &short_lived].map(|pod| kubelet.address(pod));
    addresses.iter().for_each(|address| answers(&node, address));

    // Step 4: the node's pod of the DaemonSet is another one.
    let objects = overlaid("take-over");
    let api = ApiServer::new();
    let spec = asking(&api, &node, pod(&objects));
    let daemon = kubelet.start("daemon", &spec, &config_map()).unwrap();
    node.until_ready(&kubelet, &daemon);
    assert_eq!(
        fs::read_to_string(node.file("/run/flannel/subnet.env")).unwrap(),
        SUBNET_ENV,
        "the node keeps its subnet"
    );
    let of_the_map = config_map()["kube-flannel-cfg"]["cni-conf.json"].clone();
    assert_eq!(fs::read_to_string(node.file(CONFLIST)).unwrap(), of_the_map);
    addresses.iter().for_each(|address| answers(&node, address));
    until_attachable(&mut kubelet);
    let new = kubelet.sandbox("new", &[], false).unwrap();
    let new_address = kubelet.address(&new);
    assert!(!addresses.contains(&new_address));
    answers(&node, &new_address);
    let bridges = oracle::ip_list(&node.network, "link show type bridge").unwrap();
    assert_eq!(bridges.len(), 1, "one bridge for pods from before and after: {bridges:?}");
    // A pod from before goes as any other.
    kubelet.remove(&short_lived);
    assert!(!reserved(&node, &addresses[1]) && reserved(&node, &addresses[0]));

    // Our conflist in the place of kube-flannel's, while pods run.
    let (manifest, daemon_before) = (crate::objects::manifest(), daemon);
    kubelet.remove(&daemon_before);
    let daemon = kubelet.start("daemon", &spec, &config_maps(&manifest)).unwrap();
    node.until_ready(&kubelet, &daemon);
    eventually(LIMIT, || {
        let text = fs::read_to_string(node.file(CONFLIST))?;
        if text.contains("flannel-rs") { Ok(()) } else { Err(text.into()) }
    })
    .unwrap();
    until_attachable(&mut kubelet);
    let last = kubelet.sandbox("last", &[], false).unwrap();
    let last_address = kubelet.address(&last);
    for address in [&addresses[0], &new_address, &last_address] {
        answers(&node, address);
    }
    assert_eq!(oracle::ip_list(&node.network, "link show type bridge").unwrap().len(), 1);

    // And back: kube-flannel's init container copies its plugin over ours, and what was there before us comes back.
    kubelet.remove(&daemon);
    let copied = bin.join("flannel");
    fs::write(&copied, "Go flannel's plugin").unwrap();
    assert!(same(&bin.join("cni-plugin"), &tools::cni_plugin().unwrap()), "written through a link");
    uninstall(&bin);
    for name in ["bridge", "host-local", "portmap", "loopback"] {
        assert!(same(&bin.join(name), &Path::new("/usr/lib/cni").join(name)), "{name}");
    }
    assert_eq!(fs::read_to_string(&copied).unwrap(), "Go flannel's plugin");
    install_conflist(&node, &handed_on());
    until_attachable(&mut kubelet);
    let after = kubelet.sandbox("after", &[], false).unwrap();
    let after_address = kubelet.address(&after);
    for address in [&addresses[0], &new_address, &last_address, &after_address] {
        answers(&node, address);
    }
    for pod in [old, new, last, after] {
        kubelet.remove(&pod);
    }
    for address in [&addresses[0], &new_address, &last_address, &after_address] {
        assert!(!reserved(&node, address), "{address}");
    }
    let links = oracle::links(&node.network).unwrap();
    assert!(!links.iter().any(|name| name.starts_with("veth")), "{links:?}");
}

/// As the guide has it.
#[allow(clippy::disallowed_methods, reason = "the command of the guide")]
fn uninstall(bin: &Path) {
    let guide = fs::read_to_string(conf().join("kubernetes/README.md")).unwrap();
    assert!(guide.contains("/opt/cni/bin/cni-plugin uninstall --bin-dir /opt/cni/bin\n"));
    let output = std::process::Command::new(bin.join("cni-plugin")).args(["uninstall", "--bin-dir"]).arg(bin).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
}
