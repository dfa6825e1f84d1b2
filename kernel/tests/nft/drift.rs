//! Noticing what others did to our table, and putting it right.

use crate::{fresh, nft, sample, with};
use kernel::nft::{Action, Family, Match, Nft, Set, Table};
use nix::errno::Errno;

/// After `commands` of the nft program the table is no longer intact; then it is put right, and nothing is left to do.
fn notices(table: &Table, commands: &str) {
    let (namespace, mut connection) = with(table);
    assert!(connection.is_intact(table).unwrap(), "right after it was programmed");
    assert!(!connection.ensure(table).unwrap(), "nothing to do");
    nft(&namespace, &["-f", "-"], commands);
    assert!(!connection.is_intact(table).unwrap(), "after {commands:?}");
    assert!(connection.ensure(table).unwrap(), "put right after {commands:?}");
    assert!(!connection.ensure(table).unwrap(), "nothing left to do after {commands:?}");
}

#[test]
fn whatever_others_do_to_a_table_is_noticed() {
    for commands in [
        "flush ruleset",
        "delete table ip flanneld-rs",
        "flush table ip flanneld-rs",
        "flush chain ip flanneld-rs postrouting",
        "add rule ip flanneld-rs forward drop",
        "insert rule ip flanneld-rs forward drop comment \"from pods\"",
        "add chain ip flanneld-rs another",
        "add set ip flanneld-rs another { type ipv4_addr; }",
        "add chain ip flanneld-rs forward { type filter hook forward priority 0; policy drop; }",
        "add table ip flanneld-rs { flags dormant; }",
    ] {
        notices(&sample::masquerade_ipv4(), commands);
    }
}

#[test]
fn a_deleted_rule_is_noticed() {
    let table = sample::masquerade_ipv6();
    let (namespace, mut connection) = with(&table);
    let listing = nft(&namespace, &["-a", "list", "table", "ip6", "flanneld-rs"], "");
    let rule = listing.lines().find(|line| line.contains("pod to pod")).unwrap();
    let (_, handle) = rule.rsplit_once("# handle ").unwrap();
    nft(&namespace, &["delete", "rule", "ip6", "flanneld-rs", "postrouting", "handle", handle], "");
    assert!(!connection.is_intact(&table).unwrap());
}

#[test]
fn changed_elements_are_noticed() {
    for commands in [
        "delete element inet everything hosts { 10.0.0.2 }",
        "add element inet everything hosts { 10.0.0.3 }",
        "delete element inet everything nets { 192.168.7.0/24 }",
        "add element inet everything empty { 192.168.7.0/24 }",
        "add element inet everything nets6 { 2001:db8:8000::/33 }",
        "flush set inet everything ports",
    ] {
        notices(&sample::everything(), commands);
    }
    for commands in [
        "delete element ip host-ports ports { tcp . 8080 }",
        "delete element ip host-ports ports { tcp . 8080 }\n\
         add element ip host-ports ports { tcp . 8080 : 10.244.3.7 . 81 }",
    ] {
        notices(&sample::host_ports(), commands);
    }
}

#[test]
fn a_changed_wish_is_noticed() {
    let table = sample::masquerade_ipv4();
    let (_namespace, mut connection) = with(&table);
    let mut other_rule = table.clone();
    other_rule.chains[1].rules[3].action = Action::Masquerade { fully_random: false };
    let mut other_prefix = table.clone();
    other_prefix.chains[0].rules[0].matches = vec![Match::Source(sample::network("10.244.0.0/17"))];
    let mut other_order = table.clone();
    other_order.chains[0].rules.swap(0, 1);
    let mut other_priority = table.clone();
    other_priority.chains[0].hook.as_mut().unwrap().priority = -1;
    let mut fewer = table.clone();
    fewer.chains.pop();
    let mut more = table.clone();
    more.sets.insert("more".into(), Set::networks(kernel::nft::Field::Ipv4Address, []));
    for wish in [other_rule, other_prefix, other_order, other_priority, fewer, more] {
        assert!(!connection.is_intact(&wish).unwrap(), "{wish}");
    }
    assert!(connection.is_intact(&table).unwrap());
}

#[test]
fn deleting_is_idempotent_and_leaves_the_tables_of_others() {
    let namespace = fresh();
    nft(&namespace, &["add", "table", "ip", "theirs"], "");
    let mut connection = Nft::open_in(&namespace).unwrap();
    assert!(!connection.delete(Family::Ip, "flanneld-rs").unwrap());
    connection.replace(&sample::masquerade_ipv4()).unwrap();
    assert!(!connection.delete(Family::Ip6, "flanneld-rs").unwrap());
    assert!(connection.delete(Family::Ip, "flanneld-rs").unwrap());
    assert_eq!(nft(&namespace, &["list", "tables"], "").trim(), "table ip theirs");
}

#[test]
fn a_refused_table_changes_nothing_and_is_named() {
    let table = sample::masquerade_ipv4();
    let (namespace, mut connection) = with(&table);
    let before = nft(&namespace, &["list", "ruleset"], "");
    // The kernel has no nat chain at the forward hook.
    let mut wrong = table.clone();
    let hook = wrong.chains[1].hook.as_mut().unwrap();
    hook.point = kernel::nft::HookPoint::Forward;
    let error = connection.replace(&wrong).unwrap_err();
    assert_eq!(error.errno, Errno::EOPNOTSUPP, "{error}");
    assert!(error.to_string().contains("adding chain postrouting to nft table ip flanneld-rs"), "{error}");
    // What contradicts itself is not even sent.
    let mut wrong = table.clone();
    wrong.chains[0].rules[0].matches = vec![Match::Source(sample::network("fd00::/8"))];
    let error = connection.replace(&wrong).unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL, "{error}");
    assert!(error.to_string().contains("rule \"from pods\" to chain forward"), "{error}");
    for action in [Action::Jump("nowhere".into()), Action::DestinationNat { map: "nothing".into() }] {
        wrong.chains[0].rules[0] = sample::rule([], action, "");
        assert_eq!(connection.replace(&wrong).unwrap_err().errno, Errno::EINVAL);
    }
    let mut wrong = table.clone();
    wrong.chains[0].name = wrong.chains[1].name.clone();
    assert_eq!(connection.replace(&wrong).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(nft(&namespace, &["list", "ruleset"], ""), before);
    assert!(connection.is_intact(&table).unwrap());
}

#[test]
fn names_and_comments_of_any_length_are_bounded() {
    let mut table = sample::masquerade_ipv4();
    table.chains[0].rules[0].comment = "\"é\n".repeat(300);
    let (_namespace, mut connection) = with(&table);
    assert!(connection.is_intact(&table).unwrap());
    for name in [String::new(), "x".repeat(256), "x".repeat(70_000), "a\0b".into()] {
        let error = connection.replace(&Table { name, ..table.clone() }).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL);
    }
}
