//! The command line of the real executable: what only a process of its own can show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use clap::CommandFactory;
use flanneld_rs::options::Options;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// All flags of flanneld v0.28.9 with their defaults, as its `--help` has them, and a value that each takes.
const FLANNELS: [(&str, &str, &str); 31] = [
    ("etcd-cafile", "", "/etc/ca.pem"),
    ("etcd-certfile", "", "/etc/cert.pem"),
    ("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "https://a:2379,https://b:2379"),
    ("etcd-keyfile", "", "/etc/key.pem"),
    ("etcd-password", "", "-secret"),
    ("etcd-prefix", "/coreos.com/network", "/network"),
    ("etcd-username", "", "me"),
    ("healthz-ip", "0.0.0.0", "127.0.0.1"),
    ("healthz-port", "0", "8471"),
    ("iface", "", "eth1"),
    ("iface-can-reach", "", "192.0.2.1"),
    ("iface-regex", "", "eth[0-9],?"),
    ("ip-blackhole-route", "false", "true"),
    ("ip-masq", "false", "true"),
    ("ip-masq-fully-random-disable", "false", "T"),
    ("iptables-forward-rules", "true", "0"),
    ("iptables-resync", "5", "86400"),
    ("kube-annotation-prefix", "flannel.alpha.coreos.com", "example.com/net"),
    ("kube-api-url", "", "https://api:6443"),
    ("kube-subnet-mgr", "false", "1"),
    ("kubeconfig-file", "", "/etc/kubeconfig"),
    ("log_backtrace_at", "", "a.go:7"),
    // Read with --kube-subnet-mgr only; ours have no default, and take that one then.
    ("net-config-path", "", "/etc/net-conf.json"),
    ("public-ip", "", "192.0.2.7"),
    ("public-ipv6", "", "2001:db8::7"),
    ("set-node-network-unavailable", "true", "false"),
    ("subnet-file", "/run/flannel/subnet.env", "/run/subnet.env"),
    ("subnet-lease-renew-margin", "60", "1439"),
    ("v", "0", "10"),
    ("version", "", ""),
    ("vmodule", "", "etcd=2"),
];

#[test]
fn every_flag_of_flannels_has_its_default_its_variable_and_both_spellings() {
    let command = Options::command();
    for (name, default, value) in FLANNELS {
        let ours = command.get_arguments().find(|arg| arg.get_long() == Some(name));
        let ours = ours.unwrap_or_else(|| panic!("--{name} is not taken"));
        if name == "version" {
            continue;
        }
        let defaults: Vec<&str> = ours.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        assert_eq!(defaults.join(","), default, "--{name}");
        let variable = format!("FLANNELD_{}", name.replace('-', "_").to_uppercase());
        assert_eq!(ours.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        assert_eq!(exit_status(&[(&variable, value)]), Some(1), "{variable}={value}");
        let parse = |args: &[String]| {
            let args = std::iter::once("flanneld-rs".to_owned()).chain(args.iter().cloned());
            Options::parse_go_style(args).unwrap_or_else(|error| panic!("{error}"))
        };
        let spelled =
            [format!("-{name}={value}"), format!("--{name}={value}")].map(|arg| format!("{:?}", parse(&[arg])));
        assert_eq!(spelled[0], spelled[1]);
        assert_ne!(spelled[0], format!("{:?}", parse(&[])), "--{name} changes nothing");
        // Go has the value of a truth value behind = only.
        if !matches!(default, "true" | "false") {
            assert_eq!(format!("{:?}", parse(&[format!("-{name}"), value.into()])), spelled[0]);
        }
    }
}

#[test]
fn the_list_is_the_one_of_go_flannels_help() {
    let named = std::env::var_os("GO_FLANNELD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|directory| directory.join("flanneld")).find(|file| file.is_file());
    let Some(flanneld) = named.or_else(found) else {
        println!("NOT COMPARED: there is no Go flanneld in PATH");
        return;
    };
    #[allow(clippy::disallowed_methods, reason = "the product starts no process, its tests ask Go flannel")]
    let help = Command::new(flanneld).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stderr).into_owned();
    let names = help.lines().filter_map(|line| line.strip_prefix("  -")?.split_whitespace().next());
    assert_eq!(names.collect::<BTreeSet<_>>(), FLANNELS.iter().map(|(name, ..)| *name).collect());
}

/// Exit status 2 comes from the command line; 1 from the first thing that the daemon does with it.
fn exit_status(environment: &[(&str, &str)]) -> Option<i32> {
    #[allow(clippy::disallowed_methods, reason = "the product starts no process, its tests start the product")]
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_flanneld-rs"));
    daemon.env_clear().envs(environment.iter().copied()).arg("--iface-regex=(");
    daemon.output().unwrap().status.code()
}

#[test]
fn the_environment_is_read_as_go_reads_it() {
    for (name, value) in [
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IP_MASQ", "1"),
        // Not set, whatever its type.
        ("FLANNELD_IP_MASQ", ""),
        ("FLANNELD_PUBLIC_IP", ""),
        ("FLANNELD_HEALTHZ_PORT", ""),
    ] {
        assert_eq!(exit_status(&[(name, value)]), Some(1), "{name}={value}");
    }
    for (name, value) in [("FLANNELD_IP_MASQ", "yes"), ("FLANNELD_PUBLIC_IP", "fish")] {
        assert_eq!(exit_status(&[(name, value)]), Some(2), "{name}={value}");
    }
}
