//! What the firewalls of others do with a pod's packet, in rulesets as they are found on nodes; and that it is what the kernel
//! does with it is tested in `e2e`.

use crate::{fresh, nft};
use kernel::netns::Netns;
use kernel::nft::{Nft, Packet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

fn packet(v6: bool) -> Packet {
    let address = |text: &str| text.parse().unwrap();
    let (source, destination) = if v6 {
        (address("fd42:0:0:1::2"), address("fd42:0:0:2::2"))
    } else {
        (address("10.42.1.2"), address("10.42.2.2"))
    };
    Packet { source, destination, input: "cni0".into(), output: "flannel.1".into() }
}

fn obstacles(namespace: &Netns, v6: bool) -> Vec<String> {
    let mut nft = Nft::open_in(namespace).unwrap();
    let chains = nft.forward_chains().unwrap();
    let found = nft.obstacles(&chains, &packet(v6)).unwrap();
    found.iter().map(ToString::to_string).collect()
}

/// Loads rules by iptables-restore, in the nftables variant.
#[allow(
    clippy::disallowed_methods,
    reason = "the product starts no process; this test looks at another program's rules"
)]
fn iptables(namespace: &Netns, v6: bool, rules: &str) {
    let program = if v6 { "/usr/sbin/ip6tables-nft-restore" } else { "/usr/sbin/iptables-nft-restore" };
    namespace
        .run(|| {
            let child = Command::new(program).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let mut child = child.expect("iptables is needed: install the package iptables");
            child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}\n{rules}", String::from_utf8_lossy(&output.stderr));
        })
        .unwrap();
}

/// The FORWARD chain of a node with Docker and kube-proxy, with more rules in front.
fn docker(more: &str) -> String {
    format!(
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:DOCKER-ISOLATION-STAGE-1 - [0:0]\n\
         :DOCKER-ISOLATION-STAGE-2 - [0:0]\n:KUBE-FORWARD - [0:0]\n{more}\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n-A FORWARD -j DOCKER-USER\n\
         -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
         -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -o docker0 -j DOCKER\n\
         -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n-A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
         -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\n\
         -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
         -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n\
         -A DOCKER-ISOLATION-STAGE-2 -j RETURN\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment x -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A DOCKER-USER -j RETURN\nCOMMIT\n"
    )
}

#[test]
fn iptables_policies_are_seen_and_what_accepts_before_them() {
    for v6 in [false, true] {
        let (family, network) = if v6 { ("ip6", "fd42::/48") } else { ("ip", "10.42.0.0/16") };
        let by_policy = format!("table {family} filter, chain FORWARD (policy drop)");
        let by_rule = format!("table {family} filter, chain FORWARD (a rule that drops or rejects)");
        for (policy, rules, wanted) in [
            ("DROP", String::new(), vec![by_policy.clone()]),
            ("DROP", format!("-A FORWARD -s {network} -j ACCEPT\n"), vec![]),
            ("ACCEPT", format!("-A FORWARD -j REJECT\n-A FORWARD -d {network} -j ACCEPT\n"), vec![by_rule]),
            ("ACCEPT", "-A INPUT -j DROP\n".into(), vec![]),
        ] {
            let namespace = fresh();
            iptables(
                &namespace,
                v6,
                &format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n{rules}COMMIT\n"),
            );
            assert_eq!(obstacles(&namespace, v6), wanted, "{policy} {rules}");
            assert!(obstacles(&namespace, !v6).is_empty(), "{rules}: of the other family");
        }
    }
    for (more, drops) in [
        ("", true),
        ("-A DOCKER-USER -d 10.42.0.0/16 -j ACCEPT\n", false),
        ("-A FORWARD -i cni+ -j ACCEPT\n", false),
        ("-A FORWARD -i br+ -j ACCEPT\n", true),
        // Marks that are set by iptables' own means, as network policies set them.
        ("-A FORWARD -j CONNMARK --restore-mark\n-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT\n", false),
        // Whether it is that time is not for us to say.
        ("-A FORWARD -m time --timestart 00:00 --timestop 23:59 -j ACCEPT\n", false),
    ] {
        let namespace = fresh();
        iptables(&namespace, false, &docker(more));
        let wanted = if drops { vec!["table ip filter, chain FORWARD (policy drop)"] } else { vec![] };
        assert_eq!(obstacles(&namespace, false), wanted, "{more}");
    }
}

/// The shape of firewalld's: zones by device, a set of protocols, and a reject at the end.
const FIREWALLD: &str = r#"
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 type addr-unreachable
        jump filter_FORWARD_IN_ZONES
        jump filter_FORWARD_OUT_ZONES
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_IN_ZONES {
        TRUSTED
        iifname "eth0" goto filter_FWDI_public
        goto filter_FWDI_public
    }
    chain filter_FORWARD_OUT_ZONES { oifname "eth0" goto filter_FWDO_public; goto filter_FWDO_public; }
    chain filter_FWDI_public { jump filter_FWDI_public_deny; meta l4proto { icmp, ipv6-icmp } accept; }
    chain filter_FWDI_public_deny { }
    chain filter_FWDO_public { }
    chain filter_FWDI_trusted { accept; }
}"#;

#[test]
fn firewalld_is_seen_until_the_pods_are_trusted() {
    let rejected = "table inet firewalld, chain filter_FORWARD (a rule that drops or rejects)";
    for (trusted, v4, v6) in [
        ("", &[rejected][..], &[rejected][..]),
        ("ip saddr 10.42.0.0/16 goto filter_FWDI_trusted", &[], &[rejected]),
        ("iifname \"cni0\" goto filter_FWDI_trusted", &[], &[]),
        ("iifname { \"docker0\", \"cni0\" } goto filter_FWDI_trusted", &[], &[]),
        ("iifname \"docker*\" goto filter_FWDI_trusted", &[rejected], &[rejected]),
    ] {
        let namespace = fresh();
        nft(&namespace, &["-f", "-"], &FIREWALLD.replace("TRUSTED", trusted));
        assert_eq!(obstacles(&namespace, false), v4, "{trusted}");
        assert_eq!(obstacles(&namespace, true), v6, "{trusted}");
    }
}

#[test]
fn rules_of_every_kind_are_followed() {
    let policy = "table inet t, chain c (policy drop)";
    let rule = "table inet t, chain c (a rule that drops or rejects)";
    for (rules, wanted) in [
        ("", &[policy][..]),
        ("accept", &[]),
        ("ip saddr @nets accept", &[]),
        ("ip saddr != @nets accept", &[policy]),
        ("ip daddr @others accept", &[policy]),
        ("ip saddr 10.42.0.1-10.42.9.9 accept", &[]),
        ("ip saddr 10.43.0.1-10.43.9.9 accept", &[policy]),
        ("tcp dport 22 accept", &[policy]),
        ("tcp flags syn accept", &[]),
        ("meta mark and 0xff == 0 accept", &[]),
        ("meta mark set 7 ; meta mark 7 accept", &[]),
        ("limit rate 1/second meta mark set 7 ; meta mark 7 drop; accept", &[]),
        ("iifname vmap { \"cni0\" : jump yes, \"eth0\" : drop }", &[]),
        ("iifname vmap { \"eth0\" : jump yes }", &[policy]),
        // What is for every other key, too.
        ("iifname vmap { \"eth0\" : drop, * : jump yes }", &[]),
        ("ip saddr vmap { 10.41.0.0/16 : drop, * : accept }", &[]),
        ("ip saddr @but accept", &[]),
        ("ip saddr != @but accept", &[policy]),
        // An element that counts for some packets only.
        ("ip saddr @metered drop; accept", &[]),
        ("ip saddr . ip daddr { 10.42.1.2 . 10.42.2.2 } accept", &[]),
        ("ip saddr . ip daddr { 10.42.1.2 . 10.42.2.3 } accept", &[policy]),
        ("counter log limit rate 5/second jump no", &[policy]),
        ("limit rate over 5/second drop; accept", &[]),
        ("limit rate 5/second accept", &[]),
        ("update @flood { ip saddr limit rate over 10/second } drop; accept", &[]),
        ("limit name \"few\" drop; accept", &[]),
        ("limit rate 1/second meta mark set 7 ; limit rate 1/second jump marked; drop", &[]),
        ("ip saddr @many accept", &[]),
        ("ct state vmap { new : jump yes, invalid : drop }", &[]),
        ("goto no; accept", &[policy]),
        ("jump deep; accept", &[]),
        ("iifname \"cni0\" drop; accept", &[rule]),
        ("fib daddr type local drop; accept", &[]),
        ("fib daddr type unicast accept", &[]),
        ("meta hour \"00:00\"-\"01:00\" return; accept", &[]),
        ("udp length 5 accept; meta nfproto ipv6 accept", &[policy]),
    ] {
        let namespace = fresh();
        // More than are looked at, but only where it matters.
        let most = if rules.contains("@many") { 11_000u32 } else { 1 };
        let many: Vec<String> = (0..most).map(|number| Ipv4Addr::from(0x0b00_0000 + 2 * number).to_string()).collect();
        let many = many.join(", ");
        let text = format!(
            "table inet t {{\n set nets {{ type ipv4_addr; flags interval; elements = {{ 10.42.0.0/16, 10.44.0.0/16 }}; }}\n\
             set others {{ type ipv4_addr; flags interval; elements = {{ 10.41.0.0/16, 10.43.0.0/16 }}; }}\n\
             set but {{ type ipv4_addr; flags interval; elements = {{ 10.41.0.0/16, * }}; }}\n\
             set metered {{ type ipv4_addr; limit rate 1/second; elements = {{ 10.42.1.2 limit rate 1/second }}; }}\n\
             set flood {{ type ipv4_addr; flags dynamic, timeout; timeout 1m; }}\n limit few {{ rate over 9/second; }}\n\
             set many {{ type ipv4_addr; elements = {{ {many} }}; }}\n chain marked {{ meta mark 7 accept; }}\n\
             chain no {{ return; accept; }}\n chain yes {{ accept; }}\n chain deep {{ jump no; iifname \"x\" drop; }}\n\
             chain c {{ type filter hook forward priority 0; policy drop; {}\n}}\n}}",
            rules.replace(" ; ", "\n").replace("; ", "\n")
        );
        nft(&namespace, &["-f", "-"], &text);
        assert_eq!(obstacles(&namespace, false), wanted, "{rules}");
    }
}

#[test]
fn a_table_that_sleeps_is_in_nobodys_way_and_hooks_of_others_are_not_asked() {
    let namespace = fresh();
    nft(
        &namespace,
        &["-f", "-"],
        "table ip t {\n flags dormant\n chain c { type filter hook forward priority 0; policy drop; }\n}\n\
         table ip u {\n chain c { type filter hook input priority 0; policy drop; }\n}",
    );
    assert!(obstacles(&namespace, false).is_empty());
}

/// The more chains there are, the longer it takes, but never for the rules that the packet does not meet.
#[test]
fn thousands_of_chains_take_milliseconds() {
    let namespace = fresh();
    let mut text =
        String::from("table ip filter {\n chain FORWARD { type filter hook forward priority 0; policy drop; }\n");
    (0..4000).for_each(|number| text += &format!("chain c{number} {{ ip daddr 10.0.0.1 drop; }}\n"));
    nft(&namespace, &["-f", "-"], &(text + "}"));
    let start = std::time::Instant::now();
    assert_eq!(obstacles(&namespace, false).len(), 1);
    // A hundred times what it takes on an idle machine.
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    println!("{:?}", start.elapsed());
}
