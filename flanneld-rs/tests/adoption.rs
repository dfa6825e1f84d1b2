//! A node that Go flannel served before: what it left is taken over as it is, and goes when we go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Means};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::files::Files;
use flanneld_rs::firewall::{Policy, Switch};
use flanneld_rs::health::Health;
use flanneld_rs::lease::{Lease, LeaseTable};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::options::Options;
use flanneld_rs::reconcile::{Reconciler, Source};
use flanneld_rs::uninstall::{Outcome, uninstall};
use flanneld_rs::uplink::Choice;
use kernel::VxlanLink;
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::watch::Wake;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

#[test]
fn an_adopted_device_keeps_its_identity_and_goes_with_uninstall() {
    let dir = tempfile::tempdir().unwrap();
    let (node, neighbour) = (Netns::create().unwrap(), Netns::create().unwrap());
    node.run(|| adopt_and_uninstall(&neighbour, dir.path())).unwrap();
}

fn adopt_and_uninstall(neighbour: &Netns, dir: &Path) {
    let mut netlink = Netlink::open().unwrap();
    underlay(&mut netlink, neighbour);
    let predecessors = VxlanLink {
        vni: 1,
        port: 8472,
        underlay: "eth0".into(),
        local: "192.0.2.1".parse().unwrap(),
        mac: "76:85:0d:b5:a2:9c".parse().unwrap(),
        mtu: 1450,
        learning: false,
        gbp: false,
        tx_checksum: None,
    };
    netlink.create_vxlan("flannel.1", &predecessors, "").unwrap();
    // --ip-blackhole-route, and somebody's who keeps packets from another node.
    for dst in ["10.5.1.0/24", "10.5.7.0/24"] {
        run("ip", &["route", "add", "blackhole", dst]);
    }
    let before = netlink.link("flannel.1").unwrap().unwrap();

    let subnet_file = dir.join("subnet.env");
    let flags = ["flanneld-rs".into(), "--iface=eth0".into(), format!("--subnet-file={}", subnet_file.display())];
    let options = Options::parse_go_style(flags).unwrap();
    let mut reconciler = reconciler(&options, predecessors.mac, true);
    let own = Lease {
        subnets: PerFamily { v4: Some("10.5.1.0/24".parse().unwrap()), v6: None },
        announcement: reconciler.announcement().unwrap(),
    };
    let leases = Arc::new([own.clone()].into_iter().collect::<LeaseTable>());
    assert!(reconciler.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", reconciler.health.ready());
    let adopted = netlink.link("flannel.1").unwrap().unwrap();
    assert_eq!((adopted.index, adopted.mac, adopted.alias.as_str()), (before.index, before.mac, kernel::LINK_ALIAS));

    // --ip-blackhole-route: no bridge has the own subnet yet, and what is for it goes nowhere else; but a bridge may come.
    let blackholes = || run("ip", &["route", "show", "type", "blackhole"]);
    let others = "blackhole 10.5.7.0/24 \n";
    let ours = "blackhole 10.5.1.0/24 proto 251 metric 2000000000 \n";
    assert_eq!(blackholes(), format!("{ours}{others}"));
    run("ip", &["link", "add", "cbr0", "up", "type", "bridge"]);
    run("ip", &["address", "add", "10.5.1.1/24", "dev", "cbr0"]);
    assert!(run("ip", &["route", "get", "10.5.1.9"]).contains("dev cbr0"));
    run("ip", &["link", "delete", "cbr0"]);
    // Of the flannel that ran before a start without the flag.
    run("ip", &["route", "add", "blackhole", "10.5.1.0/24"]);
    let mut without = self::reconciler(&options, predecessors.mac, false);
    without.announcement().unwrap();
    assert!(without.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", without.health.ready());
    assert_eq!(blackholes(), others);
    // What comes later is an administrator's.
    run("ip", &["route", "add", "blackhole", "10.5.1.0/24"]);
    assert!(without.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", without.health.ready());
    assert_eq!(blackholes(), format!("blackhole 10.5.1.0/24 \n{others}"));
    run("ip", &["route", "delete", "blackhole", "10.5.1.0/24"]);
    assert!(reconciler.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", reconciler.health.ready());
    assert_eq!(blackholes(), format!("{ours}{others}"));

    let report = uninstall(&options, false);
    assert!(report.items.iter().all(|item| item.outcome == Outcome::Done), "{report}");
    assert_eq!(blackholes(), others);
    assert_eq!(netlink.link("flannel.1").unwrap(), None);
    assert!(!subnet_file.exists());
}

/// flannel's chains, as it makes them (iptables mode and nftables mode), and rules of others.
const GO_RULES: [&str; 4] = [
    "-t nat -N FLANNEL-POSTRTG",
    "-t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
    "-t filter -N FLANNEL-FWD",
    "-t filter -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
];
const OTHERS: [&str; 3] = [
    "-t nat -A POSTROUTING -s 172.17.0.0/16 -m comment --comment FLANNEL-POSTRTG -j MASQUERADE",
    "-t filter -N MINE",
    "-t filter -A FORWARD -j MINE",
];

#[test]
fn rules_of_a_predecessor_go_once_ours_stand() {
    let dir = tempfile::tempdir().unwrap();
    let (node, neighbour) = (Netns::create().unwrap(), Netns::create().unwrap());
    node.run(|| take_over_rules(&neighbour, dir.path())).unwrap();
}

fn take_over_rules(neighbour: &Netns, dir: &Path) {
    let mut netlink = Netlink::open().unwrap();
    underlay(&mut netlink, neighbour);
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
        let rules = OTHERS.iter().filter(|rule| program != "ip6tables-nft" || !rule.contains("172.17"));
        for rule in rules.chain(&GO_RULES) {
            run("sh", &["-ec", &format!("{program} {rule}")]);
        }
    }
    for (family, table) in [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")] {
        run("nft", &["add", "table", family, table]);
    }
    // Where all else is dropped, flannel's accepts are what lets pods through.
    run("ip6tables-nft", &["-P", "FORWARD", "DROP"]);
    let flags = ["flanneld-rs".into(), "--iface=eth0".into(), format!("--subnet-file={}/subnet.env", dir.display())];
    let options = Options::parse_go_style(flags).unwrap();
    let mut reconciler = reconciler(&options, "76:85:0d:b5:a2:9c".parse().unwrap(), true);
    let own = Lease {
        subnets: PerFamily { v4: Some("10.5.1.0/24".parse().unwrap()), v6: None },
        announcement: reconciler.announcement().unwrap(),
    };
    let leases = Arc::new([own.clone()].into_iter().collect::<LeaseTable>());

    assert!(reconciler.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", reconciler.health.ready());
    let ruleset = run("nft", &["list", "ruleset"]);
    assert!(ruleset.contains("table ip flanneld-rs"), "{ruleset}");
    // nft does not show the comment of somebody else's rule.
    let left: Vec<&str> =
        ruleset.lines().filter(|line| line.contains("FLANNEL") || line.contains("flannel-ipv")).collect();
    assert!(left.len() == 2 && left.iter().all(|line| line.contains("FLANNEL-FWD")), "{ruleset}");
    assert!(run("ip6tables-nft-save", &[]).contains("-j FLANNEL-FWD"));
    let told = reconciler.health.notes();
    assert!(told.contains("chain FLANNEL-FWD stays in table ip6 filter"), "{told}");
    for program in ["iptables-nft-save", "iptables-legacy-save"] {
        let saved = run(program, &[]);
        assert!(
            OTHERS.iter().filter_map(|rule| rule.split_once("-A ")).all(|(_, rule)| saved.contains(rule)),
            "{saved}"
        );
    }

    // What is not nftables' is told of, with commands that do it.
    assert!(run("iptables-legacy-save", &[]).contains("FLANNEL-POSTRTG"));
    let told = reconciler.health.notes();
    let (_, commands) = told.split_once("run: ").unwrap_or_else(|| panic!("{told}"));
    let (commands, _) = commands.split_once(';').unwrap_or((commands, ""));
    run("sh", &["-ec", commands.trim()]);
    let saved = run("iptables-legacy-save", &[]);
    assert!(
        saved.contains("172.17.0.0/16") && !saved.contains("-j FLANNEL-POSTRTG") && !saved.contains(":FLANNEL-P"),
        "{saved}"
    );

    // Once nothing is dropped there any more, flannel's accepts go too, and nothing is left to be said.
    run("ip6tables-nft", &["-P", "FORWARD", "ACCEPT"]);
    assert!(reconciler.pass(&own, &leases, Source::Store, Wake::EVERYTHING));
    assert!(!run("ip6tables-nft-save", &[]).contains("FLANNEL-FWD"));
    assert!(!reconciler.health.notes().contains("Go flannel"), "{}", reconciler.health.notes());
}

/// Runs a program in the namespace of the calling thread, and returns what it printed.
#[allow(clippy::disallowed_methods, reason = "the product starts no process; this test needs somebody else's rules")]
fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error} (install the packages iptables and nftables)"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn underlay(netlink: &mut Netlink, neighbour: &Netns) {
    let eth0 = VethSpec { up: true, ..VethSpec::new("eth0", "peer", neighbour) };
    netlink.create_veth(&eth0).unwrap();
    let index = netlink.link("eth0").unwrap().unwrap().index;
    netlink.add_address(index, "192.0.2.1/24".parse().unwrap()).unwrap();
    let mut beyond = Netlink::open_in(neighbour).unwrap();
    let peer = beyond.link("peer").unwrap().unwrap().index;
    beyond.set_link(peer, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
}

fn reconciler(options: &Options, mac: kernel::Mac, refuse_own: bool) -> Reconciler {
    let config = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    let config = Arc::new(NetworkConfig::parse(config).unwrap());
    let backend =
        Backend::new(&config, Means { macs: [(Family::V4, mac)].into_iter().collect(), ..Means::default() }).unwrap();
    let policy = Policy {
        masquerade: Switch::ON,
        fully_random: true,
        not_masqueraded: BTreeSet::new(),
        forward: Switch::ON,
        refuse_own,
    };
    let files = Files::of(options);
    let ports = cni_plugin::host_ports::HostPorts::recorded_in(&options.host_ports_dir);
    let attachments = cni_plugin::attachments::Attachments::recorded_in(&options.attachments_dir);
    Reconciler::new(
        config,
        backend,
        Choice::parse(options).unwrap(),
        policy,
        files,
        (ports, attachments),
        Health::new(),
    )
    .unwrap()
}
