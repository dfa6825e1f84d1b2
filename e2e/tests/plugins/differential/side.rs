//! One conflist, run from ADD to DEL by one side's plugins.

use super::case::Run;
use super::facts::{Facts, SUCCESS, StandIns};
use super::{look, reach};
use crate::bench::{Bench, Whose};
use e2e::oracle;
use e2e::pod::Sandbox;
use e2e::runner::{Attachment, Failure, Network};
use kernel::netns::Netns;
use serde_json::{Map, Value};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A pod that is or was to be attached.
struct Pod {
    sandbox: Sandbox,
    attachment: Attachment,
}

/// What one side makes of a conflist.
struct Side<'a> {
    run: &'a Run,
    bench: Bench,
    state: PathBuf,
    network: Network,
    pods: Vec<Pod>,
    facts: Facts,
    words: StandIns,
}

/// Everything that is seen of the run.
pub(super) fn run(whose: Whose, run: &Run) -> Facts {
    let mut side = Side::prepare(whose, run);
    let attached = side.add();
    side.name_devices();
    if attached {
        side.look();
        if run.version.as_str() >= "0.4.0" {
            side.call("CHECK", |side, pod| side.bench.runtime.check(&side.network, &pod.attachment));
        }
    }
    side.call("DEL", |side, pod| side.bench.runtime.del(&side.network, &pod.attachment));
    side.call("second DEL", |side, pod| side.bench.runtime.del(&side.network, &pod.attachment));
    let left = side.left();
    if whose == Whose::Ours {
        side.gc_leaves_the_same(&left);
    }
    side.facts.0.extend(left.0);
    let mut facts = side.facts.with(&side.words);
    // What is done for the first pod is done for the others.
    facts.0.retain(|name, _| name.starts_with("left") || !name.contains("HOST-END-2"));
    facts
}

impl<'a> Side<'a> {
    fn prepare(whose: Whose, run: &'a Run) -> Self {
        let bench = Bench::new(whose);
        let state = bench.work.make("state").unwrap();
        for (name, content) in &run.case.files {
            fs::write(state.join(name), content).unwrap();
        }
        for command in &run.case.before {
            oracle::ip(bench.node(), command).unwrap();
        }
        let network = bench.network(&run.version, run.case.plugins(whose, &state)).with_state_in(&state);
        let pods: Vec<Pod> = (1..=run.case.pods).map(|number| pod(&bench, run, number)).collect();
        let (facts, mut words) = (Facts::default(), StandIns::except(run.case.spoken()));
        words.put(state.to_str().unwrap(), "DIR");
        words.put(bench.work.path().to_str().unwrap(), "WORK");
        for (number, pod) in (1..).zip(&pods) {
            words.put(pod.sandbox.path().to_str().unwrap(), format!("SANDBOX-{number}"));
        }
        Side { run, bench, state, network, pods, facts, words }
    }

    /// True if all pods were attached.
    fn add(&mut self) -> bool {
        let mut complete = true;
        for (number, pod) in (1..).zip(&self.pods) {
            let added = self.bench.runtime.add(&self.network, &pod.attachment);
            complete &= added.is_ok();
            if let (1, Ok(result)) = (number, &added) {
                self.facts.put_all("result:", result, &[]);
                self.facts.put("result: MACs", true_macs(&self.bench, pod, result));
            }
            tell(&mut self.facts, &format!("ADD {number}"), added.map(drop));
        }
        complete
    }

    /// One verb for each pod.
    fn call(&mut self, verb: &str, call: impl Fn(&Self, &Pod) -> e2e::Result<()>) {
        let outcomes: Vec<_> = self.pods.iter().map(|pod| call(self, pod)).collect();
        for (number, outcome) in (1..).zip(outcomes) {
            tell(&mut self.facts, &format!("{verb} {number}"), outcome);
        }
    }

    /// Gives those names words of their own that are chance.
    fn name_devices(&mut self) {
        let mut node = oracle::ip_list(self.bench.node(), "-details link show").unwrap();
        for (number, pod) in (1..).zip(&self.pods) {
            let links = oracle::ip_list(pod.sandbox.network(), "link show").unwrap();
            for link in links.iter().filter(|link| link["ifname"] != "lo") {
                let Some(at) = node.iter().position(|end| end["ifindex"] == link["link_index"]) else { continue };
                let end = node.remove(at);
                self.facts.put("name of the host's end", pattern(&end["ifname"]));
                self.words.put(text(&end["ifname"]), format!("HOST-END-{number}"));
            }
        }
        for link in node.iter().filter(|link| link["linkinfo"]["info_kind"] == "ifb") {
            self.facts.put("name of the ifb device", pattern(&link["ifname"]));
            self.words.put(text(&link["ifname"]), "IFB");
        }
    }

    fn look(&mut self) {
        let (facts, sandbox, node) = (&mut self.facts, self.pods[0].sandbox.network(), self.bench.node());
        // Theirs leaves the detection of duplicates of IPv6 addresses to the background.
        let settled = || match oracle::ip_list(node, "-6 address show tentative")?
            .iter()
            .all(|link| link["addr_info"][0].is_null())
        {
            true => Ok(()),
            false => Err("an address is tentative".into()),
        };
        e2e::eventually(Duration::from_secs(10), settled).unwrap();
        look::namespace(facts, "pod", sandbox);
        look::parameters(facts, "pod", sandbox, &["lo", "eth0"]);
        look::namespace(facts, "node", node);
        let links = oracle::links(node).unwrap();
        look::parameters(facts, "node", node, &links.iter().map(String::as_str).collect::<Vec<_>>());
        look::files(facts, "node", &self.state);
        let pods: Vec<(&Netns, Vec<IpAddr>)> =
            self.pods.iter().map(|pod| (pod.sandbox.network(), addresses(pod.sandbox.network()))).collect();
        reach::everywhere(facts, &self.bench, &pods, self.run.case.capabilities.get("portMappings"));
    }

    /// What is there after all DELs.
    fn left(&self) -> Facts {
        let mut left = Facts::default();
        look::remains(&mut left, "left on the node", self.bench.node());
        look::files(&mut left, "left on the node", &self.state);
        let ids: Vec<String> = self.pods.iter().map(|pod| pod.attachment.id.clone()).collect();
        look::rules(&mut left, "left on the node", self.bench.node(), &ids);
        for (number, pod) in (1..).zip(&self.pods) {
            look::remains(&mut left, &format!("left in pod {number}"), pod.sandbox.network());
        }
        left
    }

    /// Our plugins have a GC, and it leaves what DEL leaves, but for tables that nobody uses any more.
    fn gc_leaves_the_same(&mut self, left: &Facts) {
        if self.pods.iter().any(|pod| self.bench.runtime.add(&self.network, &pod.attachment).is_err()) {
            self.call("DEL", |side, pod| side.bench.runtime.del(&side.network, &pod.attachment));
            return;
        }
        self.bench.runtime.gc(&self.network.version("1.1.0"), &[]).unwrap_or_else(|error| {
            panic!("GC of {}: {error}", self.run.name);
        });
        // The counter of addresses goes on, and tables without pods go with GC only.
        let lasts = |name: &str| !name.ends_with("tables") && !name.contains("last_reserved_ip");
        let both = (left.differences(&self.left())).into_iter().filter(|(name, ..)| lasts(name)).collect::<Vec<_>>();
        assert!(both.is_empty(), "{}: DEL and GC leave: {both:#?}", self.run.name);
    }
}

fn pod(bench: &Bench, run: &Run, number: usize) -> Pod {
    let id = format!("box{number}");
    let sandbox = Sandbox::start(&id, bench.work.path()).unwrap();
    let (args, capabilities) =
        if number == 1 { (run.case.args.clone(), run.case.capabilities.clone()) } else { (String::new(), Map::new()) };
    let attachment = Attachment { args, capabilities, ..Attachment::eth0(id, sandbox.path()) };
    Pod { sandbox, attachment }
}

fn tell(facts: &mut Facts, verb: &str, outcome: e2e::Result<()>) {
    let Err(error) = outcome else { return facts.put(verb, SUCCESS) };
    let failure = error.downcast_ref::<Failure>();
    let code = failure.and_then(|failure| failure.code).map_or("no code".into(), |code| format!("code {code}"));
    facts.put(verb, format!("refused, {code}"));
    let said = failure.map_or(error.to_string(), |failure| failure.message.clone());
    // Where a plugin of theirs panics, the rest is addresses.
    let said = said.trim().lines().next().unwrap_or_default();
    let of_first = format!("{} 1 says", verb.trim_end_matches(|digit: char| digit.is_ascii_digit()).trim_end());
    if facts.0.get(&of_first).is_none_or(|first| first != said) {
        facts.put(format!("{verb} says"), said);
    }
}

/// The addresses that a pod has from the plugins.
fn addresses(network: &Netns) -> Vec<IpAddr> {
    let links = oracle::ip_list(network, "address show").unwrap();
    let all = links.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    let ours = all.filter(|address| address["scope"] == "global");
    ours.filter_map(|address| address["local"].as_str()?.parse().ok()).collect()
}

/// Of which devices a result tells the MAC that they have.
fn true_macs(bench: &Bench, pod: &Pod, result: &Value) -> String {
    let mut right = Vec::new();
    for interface in result["interfaces"].as_array().into_iter().flatten() {
        let network = if text(&interface["sandbox"]).is_empty() { bench.node() } else { pod.sandbox.network() };
        let links = oracle::ip_list(network, "link show").unwrap();
        let is_it = |link: &&Value| link["ifname"] == interface["name"] && link["address"] == interface["mac"];
        if let Some(link) = links.iter().find(is_it) {
            right.push(text(&link["ifname"]).to_owned());
        }
    }
    right.join(" ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How a device is named, without what is chance in its name.
fn pattern(name: &Value) -> String {
    let name = text(name);
    let prefix = ["veth", "ifb", "bwp"].into_iter().find(|prefix| name.starts_with(prefix)).unwrap_or_default();
    format!("{prefix} and {} characters", name.len() - prefix.len())
}
