//! A node without a cluster, and a network on it, by one side's plugins.

use e2e::oracle;
use e2e::pod::{Sandbox, first_address};
use e2e::runner::{Attachment, Network, Runtime};
use e2e::tools;
use e2e::workdir::WorkDir;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const GATEWAY: &str = "10.88.0.1";

/// A node without a cluster, and a network on it.
pub(crate) struct Stack {
    pub(crate) work: WorkDir,
    pub(crate) runtime: Runtime,
    pub(crate) network: Network,
    pub(crate) versions: &'static [&'static str],
}

impl Stack {
    fn new(plugins: impl FnOnce(&WorkDir) -> PathBuf, plugin: impl FnOnce(&WorkDir) -> Value) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        let work = WorkDir::new().unwrap();
        let node = Netns::create().expect("the tests need root");
        oracle::ip(&node, "link set lo up").unwrap();
        let plugins = plugins(&work);
        let runtime = Runtime { plugins, cache: work.make("results").unwrap(), node };
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin(&work)]});
        let network = Network::new(list).unwrap().with_state_in(work.path());
        Stack { runtime, network, work, versions: &["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }
    }

    /// bridge and host-local of containernetworking-plugins 1.1.1, which stops at 1.0.0.
    pub(crate) fn reference() -> Self {
        let bridge = tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins").unwrap();
        let directory = bridge.parent().unwrap().to_owned();
        let stack = Stack::new(|_| directory, bridge_config);
        Stack { versions: &["0.3.1", "0.4.0", "1.0.0"], ..stack }
    }

    /// Ours under the reference's names and with its configuration.
    pub(crate) fn bridge() -> Self {
        Stack::new(|work| tools::plugin_directory(&work.path().join("bin")).unwrap(), bridge_config)
    }

    /// Our own type, with a subnet file as the daemon writes it.
    pub(crate) fn native() -> Self {
        let config = |work: &WorkDir| {
            let file = work.path().join("subnet.env");
            let lines =
                "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
            fs::write(&file, lines).unwrap();
            json!({"type": "flannel-rs", "bridge": "cbr0", "subnetFile": file, "dataDir": work.path().join("networks")})
        };
        Stack::new(|work| tools::plugin_directory(&work.path().join("bin")).unwrap(), config)
    }

    /// The same with limits of the bandwidth, which makes one device more that could be left.
    pub(crate) fn limited() -> Self {
        let stack = Stack::native();
        let plugin = json!({
            "type": "flannel-rs", "bridge": "cbr0", "ingressRate": 10_000_000, "egressRate": 20_000_000,
            "subnetFile": stack.work.path().join("subnet.env"), "dataDir": stack.work.path().join("networks"),
        });
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin]});
        Stack { network: Network::new(list).unwrap().with_state_in(stack.work.path()), ..stack }
    }

    pub(crate) fn node(&self) -> &Netns {
        &self.runtime.node
    }

    pub(crate) fn sandbox(&self, name: &str) -> Sandbox {
        Sandbox::start(name, self.work.path()).unwrap()
    }

    pub(crate) fn attach(&self, name: &str) -> (Sandbox, Attachment, IpAddr) {
        let sandbox = self.sandbox(name);
        let attachment = Attachment::eth0(name, sandbox.path());
        let result = self.runtime.add(&self.network, &attachment).unwrap();
        let address = first_address(&result).unwrap();
        (sandbox, attachment, address)
    }

    pub(crate) fn del(&self, attachment: &Attachment) {
        self.runtime.del(&self.network, attachment).unwrap();
    }

    /// What an attachment may leave in the node: nothing that has to do with it, only what all attachments share.
    pub(crate) fn assert_clean(&self, context: &str) {
        let links = oracle::links(self.node()).unwrap();
        let shared: BTreeSet<String> = ["lo", "cbr0"].map(String::from).into();
        assert!(links.is_subset(&shared), "{context}: links left in the node: {links:?}");
        for (name, content) in oracle::files(&self.work.path().join("networks")).unwrap() {
            let base = name.rsplit('/').next().unwrap();
            assert!(base.parse::<IpAddr>().is_err(), "{context}: reservation left: {name} ({content:?})");
            assert!(!content.contains("box"), "{context}: an attachment is remembered in {name}: {content:?}");
        }
        let mut neighbours = oracle::ip_list(self.node(), "neigh show").unwrap();
        // What nobody answered for leads nowhere; link-local addresses come with every link.
        neighbours.retain(|entry| entry["lladdr"].is_string() && !entry["dst"].as_str().unwrap().starts_with("fe80:"));
        // The reference plugins leave what the kernel learnt, which is what a reused address suffers from.
        let is_reference = self.runtime.plugins.starts_with("/usr/lib/cni");
        assert!(is_reference || neighbours.is_empty(), "{context}: neighbours left: {neighbours:?}");
        let rules = oracle::nft(self.node(), "list ruleset").unwrap();
        assert!(!rules.contains("box") && !rules.contains("10.88.0."), "{context}: rules left: {rules}");
    }
}

fn bridge_config(work: &WorkDir) -> Value {
    json!({
        "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": work.path().join("networks"),
            "ranges": [[{"subnet": "10.88.0.0/24"}]],
        },
    })
}
