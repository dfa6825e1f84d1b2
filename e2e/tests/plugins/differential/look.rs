//! What Debian's tools show of a namespace.

use super::facts::Facts;
use e2e::oracle;
use kernel::netns::Netns;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Numbers of devices, clocks and counters, what follows from a device's MAC or from its number, and from how many
/// processors there are.
const CHANCE: [&str; 34] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "iflink",
    "stats",
    "stats64",
    "hello_timer",
    "tcn_timer",
    "gc_timer",
    "topology_change_timer",
    "message_age_timer",
    "forward_delay_timer",
    "hold_timer",
    "mcast_querier_state",
    "bridge_id",
    "root_id",
    "designated_bridge",
    "designated_root",
    "id",
    "no",
    "designated_port",
    "port_no",
    "port_id",
    "permaddr",
    "handle",
    "refcnt",
    "expires",
    "valid_life_time",
    "preferred_life_time",
    "used",
    "updated",
    "fdb_n_learned",
    "num_tx_queues",
    "num_rx_queues",
];

/// Kernel parameters that say nothing about plugins: secrets, what cannot be read, and clocks.
const UNTOLD: [&str; 4] = ["stable_secret", "flush", "tcp_fastopen_key", "ip_local_reserved_ports"];

/// What is left in a namespace, under `name`. Carriers are on their way down then, each at its time.
pub(super) fn remains(facts: &mut Facts, name: &str, network: &Netns) {
    for link in oracle::links(network).unwrap() {
        facts.put(format!("{name}: link {link}"), "there");
    }
    let mut more = Facts::default();
    addresses(&mut more, name, network);
    routes(&mut more, name, network);
    permanent_neighbours(&mut more, name, network);
    more.0.retain(|name, _| !name.ends_with(" flags"));
    facts.0.append(&mut more.0);
}

/// Everything about a namespace, under `name`.
pub(super) fn namespace(facts: &mut Facts, name: &str, network: &Netns) {
    links(facts, name, network);
    addresses(facts, name, network);
    routes(facts, name, network);
    permanent_neighbours(facts, name, network);
    queues(facts, name, network);
}

/// The devices with all their settings.
fn links(facts: &mut Facts, name: &str, network: &Netns) {
    for mut link in oracle::ip_list(network, "-details link show").unwrap() {
        if name == "node" {
            // The kernel tells the state of a bridge some time after that of its port.
            link.as_object_mut().unwrap().remove("operstate");
            link["flags"].as_array_mut().unwrap().retain(|flag| flag != "LOWER_UP" && flag != "NO-CARRIER");
        }
        facts.put_all(&format!("{name}: link {}", text(&link["ifname"])), &link, &CHANCE);
    }
}

/// Addresses, less those that each device gives itself.
fn addresses(facts: &mut Facts, name: &str, network: &Netns) {
    for link in oracle::ip_list(network, "address show").unwrap() {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            if address["scope"] != "link" && link["ifname"] != "lo" {
                let name = format!("{name}: address {} of {}", text(&address["local"]), text(&link["ifname"]));
                facts.put_all(&name, address, &CHANCE);
            }
        }
    }
}

/// Routes of all tables, less those that the kernel makes for each address and device.
fn routes(facts: &mut Facts, name: &str, network: &Netns) {
    for family in ["-4", "-6"] {
        let mut seen = BTreeMap::<String, usize>::new();
        for route in oracle::ip_list(network, &format!("{family} -details route show table all")).unwrap() {
            let to = text(&route["dst"]);
            if route["table"] == "local" || to.starts_with("fe80:") || to.starts_with("ff00:") {
                continue;
            }
            let count = seen.entry(to.to_owned()).or_default();
            *count += 1;
            let again = if *count > 1 { format!(" ({count})") } else { String::new() };
            let to = if family == "-6" && to == "default" { "default of IPv6" } else { to };
            facts.put_all(&format!("{name}: route {to}{again}"), &route, &CHANCE);
        }
    }
}

fn permanent_neighbours(facts: &mut Facts, name: &str, network: &Netns) {
    let all = oracle::ip_list(network, "neighbour show nud permanent").unwrap();
    let shown: Vec<String> =
        all.iter().map(|entry| format!("{} {}", text(&entry["dst"]), text(&entry["dev"]))).collect();
    facts.put(format!("{name}: permanent neighbours"), shown.join(", "));
}

fn queues(facts: &mut Facts, name: &str, network: &Netns) {
    let listed = oracle::tc(network, "-json qdisc show").unwrap();
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap_or_default();
    for queue in listed.iter().filter(|queue| queue["dev"] != "lo") {
        let name = format!("{name}: queue of {} {}", text(&queue["dev"]), text(&queue["kind"]));
        facts.put_all(&name, queue, &CHANCE);
    }
}

/// The network's kernel parameters. `of` are the devices whose parameters are looked at.
pub(super) fn parameters(facts: &mut Facts, name: &str, network: &Netns, of: &[&str]) {
    let mut read = BTreeMap::new();
    network
        .run(|| {
            for family in ["ipv4", "ipv6"] {
                let base = Path::new("/proc/sys/net").join(family);
                read_parameters(&base, family, &mut read);
                for device in of.iter().chain(&["all", "default"]) {
                    for part in ["conf", "neigh"] {
                        read_parameters(&base.join(part).join(device), &format!("{family}.{part}.{device}"), &mut read);
                    }
                }
            }
            read_parameters(Path::new("/proc/sys/net/core"), "core", &mut read);
        })
        .unwrap();
    for (key, value) in read {
        facts.put(format!("{name}: sysctl {key}"), value);
    }
}

fn read_parameters(directory: &Path, prefix: &str, read: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let key = entry.file_name().into_string().unwrap();
        if entry.file_type().is_ok_and(|kind| kind.is_file()) && !UNTOLD.contains(&key.as_str()) {
            let value = fs::read_to_string(entry.path()).unwrap_or_default();
            read.insert(format!("{prefix}.{key}"), value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
}

/// The files that plugins keep under `directory`. What ours have besides the reference's own is one fact: that it is there.
pub(super) fn files(facts: &mut Facts, name: &str, directory: &Path) {
    let directory = directory.to_str().unwrap();
    for (path, content) in oracle::files(Path::new(directory)).unwrap() {
        let path = path.trim_start_matches(directory).trim_start_matches('/');
        match ["/.index", "host-ports", "attachments"].iter().find_map(|own| Some(&path[..path.find(own)? + own.len()]))
        {
            Some(own) => facts.put(format!("{name}: files {own}"), "there"),
            None => facts.put(format!("{name}: file {path}"), format!("{content:?}")),
        }
    }
}

/// What is left of rules: the names of the tables, and whether any of them still says something about a pod.
pub(super) fn rules(facts: &mut Facts, name: &str, network: &Netns, pods: &[String]) {
    let tables = oracle::nft(network, "list tables").unwrap();
    let mut tables: Vec<&str> = tables.lines().filter_map(|line| line.strip_prefix("table ")).collect();
    tables.sort_unstable();
    facts.put(format!("{name}: tables"), tables.join(", "));
    let rules = oracle::nft(network, "list ruleset").unwrap();
    let named: Vec<&str> = pods.iter().map(String::as_str).filter(|pod| rules.contains(*pod)).collect();
    facts.put(format!("{name}: pods in rules"), named.join(" "));
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
