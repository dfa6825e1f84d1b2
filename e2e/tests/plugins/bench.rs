//! A node with one neighbour outside, which knows nothing of the pods' network.

use e2e::oracle;
use e2e::pod::{Sandbox, first_address};
use e2e::probe::ask;
use e2e::runner::{Attachment, Network, Runtime};
use e2e::tools;
use e2e::workdir::WorkDir;
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_millis(600);
pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const NODE6: &str = "2001:db8::1";
pub(crate) const OUTSIDE: &str = "192.0.2.2";
pub(crate) const OUTSIDE6: &str = "2001:db8::2";
pub(crate) const REFERENCE: &str = "/usr/lib/cni";

/// Whose plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Theirs,
}

pub(crate) struct Bench {
    pub(crate) work: WorkDir,
    pub(crate) runtime: Runtime,
    pub(crate) outside: Sandbox,
}

/// A pod and what its ADD answered.
pub(crate) struct Pod {
    pub(crate) sandbox: Sandbox,
    pub(crate) attachment: Attachment,
    pub(crate) result: Value,
    pub(crate) address: IpAddr,
}

impl Bench {
    pub(crate) fn new(whose: Whose) -> Self {
        Self::with(whose, &[])
    }

    /// All plugins from one side but those that are named.
    pub(crate) fn with(whose: Whose, others: &[&str]) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins").unwrap();
        let work = WorkDir::new().unwrap();
        let ours = tools::plugin_directory(&work.path().join("ours")).unwrap();
        let [own, foreign] = match whose {
            Whose::Ours => [ours.as_path(), Path::new(REFERENCE)],
            Whose::Theirs => [Path::new(REFERENCE), ours.as_path()],
        };
        let plugins = work.make("bin").unwrap();
        for name in tools::PLUGINS {
            let from = if others.contains(&name) { foreign } else { own };
            if from.join(name).exists() {
                symlink(from.join(name), plugins.join(name)).unwrap();
            }
        }
        // An IPAM plugin that we do not have, under a name of its own.
        symlink(Path::new(REFERENCE).join("host-local"), plugins.join("their-addresses")).unwrap();
        let node = Netns::create().expect("the tests need root");
        let outside = Sandbox::start("outside", work.path()).unwrap();
        let ip = |network: &Netns, args: &str| oracle::ip(network, args).unwrap();
        ip(&node, "link set lo up");
        ip(&node, &format!("link add uplink type veth peer name eth0 netns {}", outside.pid()));
        for (network, device, four, six) in
            [(&node, "uplink", NODE, NODE6), (outside.network(), "eth0", OUTSIDE, OUTSIDE6)]
        {
            ip(network, &format!("addr add {four}/24 dev {device}"));
            ip(network, &format!("addr add {six}/64 dev {device} nodad"));
            ip(network, &format!("link set {device} up"));
        }
        ip(outside.network(), "link set lo up");
        let runtime = Runtime { plugins, cache: work.make("results").unwrap(), node };
        Bench { work, runtime, outside }
    }

    pub(crate) fn node(&self) -> &Netns {
        &self.runtime.node
    }

    /// A directory of files for plugins.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    pub(crate) fn network(&self, version: &str, plugins: Value) -> Network {
        let list = json!({"cniVersion": version, "name": "net1", "plugins": plugins});
        Network::new(list).unwrap().with_state_in(self.work.path())
    }

    pub(crate) fn host_local(&self) -> Value {
        json!({"type": "host-local", "dataDir": self.directory("networks"), "ranges": [[{"subnet": "10.88.0.0/24"}]],
               "routes": [{"dst": "0.0.0.0/0"}]})
    }

    pub(crate) fn attach(&self, network: &Network, name: &str) -> Pod {
        let sandbox = Sandbox::start(name, self.work.path()).unwrap();
        let attachment = Attachment::eth0(name, sandbox.path());
        let result = self.runtime.add(network, &attachment).unwrap();
        let address = first_address(&result).unwrap();
        Pod { sandbox, attachment, result, address }
    }

    /// Who the other side sees, or that there is no answer.
    pub(crate) fn seen(&self, from: &Netns, to: IpAddr) -> String {
        ask(from, to, LIMIT).map_or_else(|_| "silence".into(), |answer| answer.seen.to_string())
    }

    /// Whether anything on the node has to do with pods.
    pub(crate) fn assert_clean(&self, context: &str) {
        let links = oracle::links(self.node()).unwrap();
        let shared: BTreeSet<String> = ["lo", "uplink", "cni0"].map(String::from).into();
        assert!(links.is_subset(&shared), "{context}: links left in the node: {links:?}");
        for (name, content) in oracle::files(self.work.path()).unwrap() {
            let base = name.rsplit('/').next().unwrap();
            assert!(base.parse::<IpAddr>().is_err(), "{context}: reservation left: {name} ({content:?})");
            let logs = base.ends_with(".log");
            assert!(logs || !base.contains("box"), "{context}: file left: {name} ({content:?})");
        }
        let rules = oracle::nft(self.node(), "list ruleset").unwrap();
        assert!(!rules.contains("box"), "{context}: rules left: {rules}");
        assert!(oracle::ip_list(self.node(), "neigh show nud permanent").unwrap().is_empty(), "{context}: neighbours");
    }
}
