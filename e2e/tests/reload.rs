//! The network configuration changes while daemons run: what can be taken over is, what cannot is refused by name, and no pod
//! notices either.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::cluster::{Backend, Cluster, Settings, Store};
use e2e::stream::{Report, Stream};
use e2e::workdir::WorkDir;
use e2e::{Result, eventually, oracle, tools};
use serde_json::{Value, json};
use std::time::Duration;

/// How soon a change is followed, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(1);

struct Scene {
    cluster: Cluster,
    settings: Settings,
    daemons: Vec<Option<u32>>,
    _work: WorkDir,
}

impl Scene {
    fn new(backend: Backend, store: Store, stored_config: bool) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let work = WorkDir::new().unwrap();
        let settings = Settings { stored_config, ..Settings::new(backend, store) };
        let cluster = Cluster::start(&settings, work.path(), 2, 1).unwrap();
        let daemons = cluster.nodes.iter().map(|node| node.daemon_pid()).collect();
        Scene { cluster, settings, daemons, _work: work }
    }

    /// The configuration at the start with these members in it, those of the backend too.
    fn with(&self, members: Value) -> String {
        let mut config = self.settings.net_conf();
        for (name, value) in members.as_object().unwrap() {
            match value.as_object().zip(config[name].as_object_mut()) {
                Some((inner, present)) => present.extend(inner.clone()),
                None => config[name] = value.clone(),
            }
        }
        config.to_string()
    }

    fn stream(&self) -> Stream {
        let nodes = &self.cluster.nodes;
        Stream::start(nodes[0].pods[0].sandbox.network(), nodes[1].pods[0].address, INTERVAL).unwrap()
    }

    /// Every node refuses this configuration for a reason in which there is `word`, and everything is as it was.
    fn is_refused(&self, text: &str, word: &str) {
        let before = self.picture();
        self.cluster.configure(text).unwrap();
        for node in &self.cluster.nodes {
            eventually(LIMIT, || match node.health("/readyz")? {
                (200, body) if body.contains("not taken over") && body.contains(word) => Ok(()),
                (status, body) => Err(format!("{word:?} is not in {status} {body}").into()),
            })
            .unwrap();
            let log = node.daemon_log();
            assert!(log.contains("not taken over") && log.contains(word), "{log}");
        }
        assert_eq!(self.picture(), before, "{text}");
    }

    /// The configuration is taken over, which `shows` on every node.
    fn is_taken(&self, text: &str, shows: impl Fn(&e2e::node::Node) -> Result<()>) {
        self.cluster.configure(text).unwrap();
        for node in &self.cluster.nodes {
            eventually(LIMIT, || shows(node)).unwrap_or_else(|error| panic!("{text}: {error}\n{}", node.daemon_log()));
            eventually(LIMIT, || match node.health("/readyz")? {
                (200, body) if !body.contains("not taken over") => Ok(()),
                (status, body) => Err(format!("{status} {body}").into()),
            })
            .unwrap();
        }
    }

    /// What the daemons have made: routes, devices, rules, files.
    fn picture(&self) -> Vec<String> {
        let of_node = |node: &e2e::node::Node| {
            let network = &node.host.network;
            let routes = oracle::ip_list(network, "route show proto 251").unwrap();
            let mtu = mtu(node).unwrap();
            let tables = oracle::nft(network, "list table ip flanneld-rs").unwrap();
            format!("{routes:?} {mtu} {tables} {:?}", node.subnet_file().unwrap())
        };
        self.cluster.nodes.iter().map(of_node).collect()
    }

    fn assert_same_daemons(&self) {
        let daemons: Vec<Option<u32>> = self.cluster.nodes.iter().map(|node| node.daemon_pid()).collect();
        assert_eq!(daemons, self.daemons);
        for node in &self.cluster.nodes {
            assert_eq!(node.health("/healthz").unwrap().0, 200);
        }
    }
}

fn mtu(node: &e2e::node::Node) -> Result<Value> {
    let links = oracle::ip_list(&node.host.network, "link show")?;
    Ok(links.iter().find(|link| link["ifname"] == "flannel.1").map(|link| link["mtu"].clone()).unwrap_or_default())
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}").into()) }
}

fn rules_contain(node: &e2e::node::Node, word: &str) -> Result<()> {
    let rules = oracle::nft(&node.host.network, "list table ip flanneld-rs")?;
    if rules.contains(word) { Ok(()) } else { Err(format!("no {word} in {rules}").into()) }
}

#[test]
fn a_file_is_followed_and_what_cannot_change_is_refused() {
    let scene = Scene::new(Backend::Vxlan, Store::File, false);
    let stream = scene.stream();
    scene.is_refused("{\"Network\": ", "EOF");
    scene.is_refused(&scene.with(json!({"Network": "10.43.0.0/16"})), "Network: 10.43.0.0/16");
    scene.is_refused(&scene.with(json!({"Backend": {"Type": "host-gw"}})), "Backend.Type: vxlan to host-gw");
    scene.is_refused(&scene.with(json!({"Backend": {"VNI": 7}})), "Backend.VNI");
    scene.is_refused(&scene.with(json!({"Backend": {"Port": 4789}})), "Backend.Port");
    scene.is_refused(&scene.with(json!({"SubnetLen": 25})), "SubnetLen");
    scene.is_refused(&scene.with(json!({"EnableIPv6": true, "IPv6Network": "fd42::/48"})), "EnableIPv6");
    // What was there at the start is there again; what flannel has a switch for, and we have not, is as good.
    scene.is_taken(&scene.with(json!({"EnableNFTables": true})), |_| Ok(()));
    scene.is_taken(&scene.with(json!({"NonMasqueradeCIDRs": ["192.168.50.0/24"]})), |node| {
        rules_contain(node, "elements = { 192.168.50.0/24 }")
    });
    scene.is_taken(&scene.with(json!({})), |node| match rules_contain(node, "192.168.50.0/24") {
        Ok(()) => Err("still there".into()),
        Err(_) => Ok(()),
    });
    scene.is_taken(&scene.with(json!({"Backend": {"MTU": 1400}})), |node| {
        expect(mtu(node)?, json!(1350))?;
        expect(node.subnet_file()?["FLANNEL_MTU"].as_str(), "1350")
    });
    let grown = json!({"Network": "10.40.0.0/13", "Backend": {"MTU": 1400}});
    scene.is_taken(&scene.with(grown), |node| {
        rules_contain(node, "ip saddr 10.40.0.0/13 accept")?;
        expect(node.subnet_file()?["FLANNEL_NETWORK"].as_str(), "10.40.0.0/13")
    });
    let Report { sent, lost, .. } = stream.stop().unwrap();
    assert!(lost == 0 && sent > 100, "{lost} of {sent}");

    // Every route is exchanged for one over another device, which takes a moment.
    let stream = scene.stream();
    let direct = json!({"Network": "10.40.0.0/13", "Backend": {"MTU": 1400, "DirectRouting": true}});
    scene.is_taken(&scene.with(direct), |node| {
        let routes = oracle::ip_list(&node.host.network, "route show proto 251")?;
        expect(routes.iter().map(|route| &route["dev"]).collect::<Vec<_>>(), vec![&json!("eth0")])
    });
    stream.wait_for_answers(100).unwrap();
    let report = stream.stop().unwrap();
    assert!(report.longest_outage < Duration::from_millis(500), "{report:?}");
    scene.assert_same_daemons();
}

#[test]
fn sighup_has_the_daemon_look_again_and_live() {
    let scene = Scene::new(Backend::HostGw, Store::File, false);
    for node in &scene.cluster.nodes {
        let pid = nix::unistd::Pid::from_raw(node.daemon_pid().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        eventually(LIMIT, || match node.daemon_log() {
            log if log.contains("SIGHUP") => Ok(()),
            log => Err(log.into()),
        })
        .unwrap();
    }
    scene.assert_same_daemons();
}

/// A node that came too late for a subnet gets one once there are more.
#[test]
fn a_network_that_was_too_small_grows() {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let work = WorkDir::new().unwrap();
    let network = |last: &str| json!({"Network": "10.42.0.0/16", "SubnetMin": "10.42.1.0", "SubnetMax": last});
    let settings = Settings { network: network("10.42.1.0"), ..Settings::new(Backend::HostGw, Store::File) };
    let mut cluster = Cluster::start(&settings, work.path(), 1, 0).unwrap();
    cluster.add_node().unwrap().start_daemon().unwrap();
    let late = &cluster.nodes[1];
    eventually(LIMIT, || match late.health("/readyz")? {
        (503, body) if body.contains("no subnet is left") => Ok(()),
        (status, body) => Err(format!("{status} {body}").into()),
    })
    .unwrap();
    let grown = Settings { network: network("10.42.9.0"), ..settings };
    cluster.configure(&grown.net_conf().to_string()).unwrap();
    cluster.nodes[1].wait_ready().unwrap();
    assert_eq!(cluster.nodes[0].subnet_file().unwrap()["FLANNEL_SUBNET"], "10.42.1.1/24");
}

fn the_store_is_followed(store: Store) {
    let mut scene = Scene::new(Backend::HostGw, store, true);
    let stream = scene.stream();
    scene.is_refused(&scene.with(json!({"Backend": {"Type": "vxlan"}})), "Backend.Type: host-gw to vxlan");
    scene.is_refused("nonsense", "lease store");
    // Who starts with nonsense goes on with what the last life had.
    let node = &mut scene.cluster.nodes[0];
    node.kill_daemon().unwrap();
    node.start_daemon().unwrap();
    node.wait_ready().unwrap();
    eventually(LIMIT, || match node.health("/readyz")? {
        (200, body) if body.contains("not taken over") => Ok(()),
        (status, body) => Err(format!("{status} {body}").into()),
    })
    .unwrap();
    scene.daemons = scene.cluster.nodes.iter().map(|node| node.daemon_pid()).collect();
    let grown = scene.with(json!({"Network": "10.32.0.0/12", "NonMasqueradeCIDRs": ["198.51.100.0/24"]}));
    scene.is_taken(&grown, |node| {
        rules_contain(node, "elements = { 198.51.100.0/24 }")?;
        expect(node.subnet_file()?["FLANNEL_NETWORK"].as_str(), "10.32.0.0/12")?;
        // For a start without the store.
        let memory = std::fs::read_to_string(node.directory().join("state/last-known.json"))?;
        if memory.contains("10.32.0.0") { Ok(()) } else { Err(format!("not remembered: {memory}").into()) }
    });
    let Report { sent, lost, .. } = stream.stop().unwrap();
    assert!(lost == 0 && sent > 100, "{lost} of {sent}");
    scene.assert_same_daemons();
}

#[test]
fn a_file_store_is_followed() {
    the_store_is_followed(Store::File);
}

#[test]
fn an_etcd_is_followed() {
    the_store_is_followed(Store::Etcd);
}
