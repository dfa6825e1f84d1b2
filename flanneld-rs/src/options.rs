//! Command line: flannel's flags, with flannel's defaults and `FLANNELD_*` environment forms, for what is built so far.

mod go_style;
mod kubernetes;
mod without_effect;

use crate::checksum::TxChecksum;
use crate::family::Family;
use crate::firewall::Switch;
use clap::builder::Resettable;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use kubernetes::{Kubernetes, NET_CONFIG_PATH};
pub use without_effect::WithoutEffect;

/// Leases a pod subnet for this node, programs the overlay network, and keeps it so.
#[derive(Clone, Debug, Parser)]
#[command(name = "flanneld-rs", version, disable_version_flag = true, max_term_width = 120)]
pub struct Options {
    /// What to do instead of running the daemon
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Keep leases in this directory, shared by the daemons of one machine, instead of in etcd
    #[arg(long, env = "FLANNELD_STORE_DIR", global = true)]
    pub store_dir: Option<PathBuf>,

    /// A comma-delimited list of etcd endpoints
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        overrides_with = "etcd_endpoints",
        global = true
    )]
    pub etcd_endpoints: Vec<String>,

    /// etcd prefix
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", default_value = "/coreos.com/network", global = true)]
    pub etcd_prefix: String,

    /// SSL key file used to secure etcd communication
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", global = true)]
    pub etcd_keyfile: Option<PathBuf>,

    /// SSL certification file used to secure etcd communication
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// SSL Certificate Authority file used to secure etcd communication
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// username for BasicAuth to etcd
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", global = true)]
    pub etcd_username: Option<String>,

    /// password for BasicAuth to etcd
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", hide_env_values = true, global = true)]
    pub etcd_password: Option<String>,

    /// File with that password, which is read again when it is replaced: no list of processes shows it
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD_FILE", global = true)]
    #[arg(conflicts_with = "etcd_password", requires = "etcd_username")]
    pub etcd_password_file: Option<PathBuf>,

    /// Interface to use (IP or name) for inter-host communication; may be given several times, the first match is taken
    #[arg(long, env = "FLANNELD_IFACE", value_delimiter = ',', action = ArgAction::Append)]
    pub iface: Vec<String>,

    /// Regular expression to match the first interface to use (IP or name); may be given several times
    #[arg(long, env = "FLANNELD_IFACE_REGEX", action = ArgAction::Append)]
    pub iface_regex: Vec<String>,

    /// Use the interface over which the given address is reached; one of each family, where they use different interfaces
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_delimiter = ',', action = ArgAction::Append)]
    pub iface_can_reach: Vec<IpAddr>,

    /// File to which the node's subnet and MTU are written for the CNI plugins
    #[arg(long, env = "FLANNELD_SUBNET_FILE", default_value = "/run/flannel/subnet.env", global = true)]
    pub subnet_file: PathBuf,

    /// IPv4 address by which other nodes reach this one
    #[arg(long, env = "FLANNELD_PUBLIC_IP")]
    pub public_ip: Option<Ipv4Addr>,

    /// IPv6 address by which other nodes reach this one
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// Subnet lease renewal margin, in minutes, less than the lease's 24 hours
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..1440))]
    pub subnet_lease_renew_margin: u64,

    /// Set up masquerading for traffic that leaves the pod network: true, false, or for ipv4 or ipv6 only
    #[arg(long, env = "FLANNELD_IP_MASQ", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub ip_masq: Switch,

    /// Networks and addresses outside the pod network that pods reach without masquerading, under their own addresses
    /// (comma-delimited, of either family), besides NonMasqueradeCIDRs of the network configuration
    #[arg(long, env = "FLANNELD_NON_MASQUERADE_CIDRS", value_delimiter = ',', action = ArgAction::Append)]
    pub non_masquerade_cidrs: Vec<IpNetwork>,

    /// Do not choose source ports at random when masquerading
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,

    /// Accept forwarded traffic of the pod network: true, false, or for ipv4 or ipv6 only
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = switch, action = ArgAction::Set)]
    pub iptables_forward_rules: Switch,

    /// Drop what is sent to addresses of this node's own subnet that nothing else has a route for (a blackhole route)
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set)]
    pub ip_blackhole_route: bool,

    /// Seconds between two full comparisons of desired and actual state, which are never rarer than every 30 seconds; changes are
    /// noticed at once besides
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub iptables_resync: u64,

    /// Path to the network configuration file; without it the configuration is read from the lease store, in Kubernetes from
    /// /etc/kube-flannel/net-conf.json
    #[arg(long, env = "FLANNELD_NET_CONFIG_PATH", global = true)]
    pub net_config_path: Option<PathBuf>,

    /// The IP address on which /healthz and /readyz are served
    #[arg(long, env = "FLANNELD_HEALTHZ_IP", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,

    /// The port on which /healthz and /readyz are served; 0: not at all
    #[arg(long, env = "FLANNELD_HEALTHZ_PORT", default_value_t = 0)]
    pub healthz_port: u16,

    /// Directory into which the conflist is installed when the node is ready; without it none is
    #[arg(long, env = "FLANNELD_CNI_CONF_DIR", global = true)]
    pub cni_conf_dir: Option<PathBuf>,

    /// Conflist to be installed in --cni-conf-dir instead of the daemon's own, such as the cni-conf.json of kube-flannel's
    /// ConfigMap
    #[arg(long, env = "FLANNELD_CNI_CONF_PATH", global = true, requires = "cni_conf_dir")]
    pub cni_conf_path: Option<PathBuf>,

    /// Directory in which the CNI plugins record the ports of this node that lead to pods, and from which they are restored
    #[arg(long, env = "FLANNELD_HOST_PORTS_DIR", default_value = cni_plugin::host_ports::DEFAULT_DIRECTORY)]
    pub host_ports_dir: PathBuf,

    /// Who computes the checksums of pods' packets in VXLAN: the underlay (on), the kernel (off), or whoever gets them right
    /// (auto); in place of the backend's txChecksum
    #[arg(long, env = "FLANNELD_TX_CHECKSUM")]
    pub tx_checksum: Option<TxChecksum>,

    /// Directory of this daemon's own, kept across reboots: what it knew when it last heard from the lease store
    #[arg(long, env = "FLANNELD_STATE_DIR", default_value = "/var/lib/flanneld-rs", global = true)]
    pub state_dir: PathBuf,

    /// Directory in which the CNI plugins record the attachments of this node, and from which their nftables are restored
    #[arg(long, env = "FLANNELD_ATTACHMENTS_DIR", default_value = cni_plugin::attachments::DEFAULT_DIRECTORY)]
    pub attachments_dir: PathBuf,

    /// Name of this node, by which it is recognised in the lease store (default: $NODE_NAME, then host name and address)
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// File with this node's WireGuard key, made if there is none (default: in --state-dir, taken over from Go flannel's)
    #[arg(long, env = "WIREGUARD_KEY_FILE")]
    pub wireguard_key_file: Option<PathBuf>,

    /// Leases in the Kubernetes API
    #[command(flatten)]
    pub kubernetes: Kubernetes,

    /// Logging verbosity: 0 tells what changes, 1 why, 2 everything
    #[arg(long = "v", env = "FLANNELD_V", default_value_t = 0, global = true)]
    pub verbosity: u8,

    /// What is taken for flannel's sake only
    #[command(flatten)]
    pub without_effect: WithoutEffect,

    /// Print version and exit
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// What else the executable does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Give the node back as it was before the daemon: devices, routes, rules, sysctls, files. The lease is kept. Stop the
    /// daemon first; it would put everything back.
    Uninstall {
        /// Only tell what would go
        #[arg(long)]
        dry_run: bool,

        /// How to tell it
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
}

/// A way to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// for people
    Table,
    /// for programs
    Json,
}

impl Options {
    /// The network configuration file, if it is one that holds the configuration.
    pub fn net_config_file(&self) -> Option<&Path> {
        let in_kubernetes = self.kubernetes.kube_subnet_mgr.then_some(Path::new(NET_CONFIG_PATH));
        self.net_config_path.as_deref().or(in_kubernetes)
    }

    /// The lease renewal margin.
    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(60 * self.subnet_lease_renew_margin)
    }

    /// Parses the arguments of the process, first of which is its name, as Go's flag package does (see `go_style`). An
    /// environment variable that is empty is one that is not set, as manifests and environment files leave them.
    pub fn parse_go_style(args: impl IntoIterator<Item = String>) -> Result<Self, clap::Error> {
        let command = Self::command().args_override_self(true).mut_args(|arg| {
            let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
            if empty { arg.env(Resettable::Reset) } else { arg }
        });
        let args = go_style::arguments(&command, args);
        let mut matches = command.try_get_matches_from(args)?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// A truth value in the spellings of Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("neither true nor false"),
    }
}

/// A truth value for both families, or the one family for which it is true.
fn switch(text: &str) -> Result<Switch, &'static str> {
    match text {
        "ipv4" => Ok(Switch::only(Family::V4)),
        "ipv6" => Ok(Switch::only(Family::V6)),
        _ => match go_bool(text) {
            Ok(true) => Ok(Switch::ON),
            Ok(false) => Ok(Switch::OFF),
            Err(_) => Err("none of true, false, ipv4, ipv6"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Options {
        Options::parse_go_style(std::iter::once("flanneld-rs").chain(args.iter().copied()).map(String::from)).unwrap()
    }

    #[test]
    fn flags_are_written_as_go_allows() {
        for args in [["-ip-masq", "-iface=eth1"], ["--ip-masq", "--iface=eth1"], ["--ip-masq=true", "-iface=eth1"]] {
            let options = parse(&args);
            assert_eq!(options.ip_masq, Switch::ON);
            assert_eq!(options.iface, ["eth1"]);
        }
        assert!(["--ip-masq=1", "--ip-masq=T", "-ip-masq=True"].iter().all(|arg| parse(&[arg]).ip_masq == Switch::ON));
        assert!(
            ["--ip-masq=false", "--ip-masq=0", "-ip-masq=F"].iter().all(|arg| parse(&[arg]).ip_masq == Switch::OFF)
        );
        assert_eq!(parse(&["--ip-masq=ipv6"]).ip_masq, Switch::only(Family::V6));
        assert_eq!(parse(&["--iptables-forward-rules=ipv4"]).iptables_forward_rules, Switch::only(Family::V4));
        let cidrs = ["--non-masquerade-cidrs=192.0.2.0/24,2001:db8::/32", "--non-masquerade-cidrs=10.0.0.1"];
        assert_eq!(parse(&cidrs).non_masquerade_cidrs.len(), 3);
        assert_eq!(parse(&["-v=2"]).verbosity, 2);
        assert_eq!(parse(&["-v", "2"]).verbosity, 2);
    }

    #[test]
    fn values_are_found_and_counted_as_go_does() {
        let options = parse(&["-etcd-username", "me", "-etcd-password", "-secret", "--ip-masq", "--ip-masq=false"]);
        assert_eq!((options.etcd_password.as_deref(), options.ip_masq), (Some("-secret"), Switch::OFF));
        let twice = parse(&["--healthz-port=1", "-healthz-port", "2", "-iface=a", "-iface", "b"]);
        assert_eq!((twice.healthz_port, twice.iface), (2, vec!["a".to_owned(), "b".into()]));
        let empty = ["-public-ip=", "-iface", "", "--etcd-cafile=", "-iface-can-reach=", "--etcd-prefix", "", "-v=1"];
        let options = parse(&empty);
        assert_eq!((options.public_ip, options.etcd_cafile, options.iface.len()), (None, None, 0));
        assert_eq!((options.etcd_prefix.as_str(), options.verbosity), ("/coreos.com/network", 1));
        let uninstall = parse(&["uninstall", "--dry-run", "--output", "json", "-state-dir", "/x"]);
        assert!(matches!(uninstall.command, Some(Command::Uninstall { dry_run: true, output: Output::Json })));
        assert_eq!(uninstall.state_dir, PathBuf::from("/x"));
        assert_eq!(parse(&["--iptables-resync=86400"]).iptables_resync, 86400);
    }

    #[test]
    fn every_flag_of_flannels_is_taken_and_what_has_no_effect_is_said() {
        let remarks = |args: &[&str]| parse(args).without_effect.remarks();
        assert_eq!(remarks(&["--ip-masq", "--ip-blackhole-route"]), [""; 0]);
        assert_eq!(
            remarks(&["-vmodule=etcd=2"]),
            ["--vmodule has no effect: messages are not chosen by source file; use --v"]
        );
        let all = ["--log_backtrace_at=a.go:7", "-vmodule=etcd=2"];
        assert_eq!(remarks(&all).len(), 2);
        let kubernetes = parse(&["--kube-subnet-mgr", "-kube-api-url=", "--kubeconfig-file=/x"]).kubernetes;
        assert!(kubernetes.kube_subnet_mgr && kubernetes.set_node_network_unavailable);
        assert_eq!((kubernetes.api_url(), kubernetes.kubeconfig()), (None, Some(&PathBuf::from("/x"))));
        assert!(parse(&["--ip-blackhole-route"]).ip_blackhole_route && !parse(&[]).ip_blackhole_route);
    }

    #[test]
    fn the_last_of_several_lists_of_endpoints_counts() {
        let options = parse(&["--etcd-endpoints=http://a:1,http://b:1", "--etcd-endpoints", "http://c:1,http://d:1"]);
        assert_eq!(options.etcd_endpoints, ["http://c:1", "http://d:1"]);
    }

    #[test]
    fn defaults_are_flannels() {
        let options = parse(&[]);
        assert_eq!(options.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(options.etcd_prefix, "/coreos.com/network");
        assert_eq!(options.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(options.renew_margin(), Duration::from_secs(3600));
        assert_eq!((options.iptables_forward_rules, options.ip_masq), (Switch::ON, Switch::OFF));
        assert_eq!(options.healthz_port, 0);
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            ["--public-ip=fish"],
            ["--subnet-lease-renew-margin=0"],
            ["--ip-masq=yes"],
            ["--no-such-flag"],
            ["--iptables-resync=0"],
            ["--etcd-password-file=/x"],
            ["--ip-masq=both"],
            ["--non-masquerade-cidrs=fish"],
        ] {
            let args = std::iter::once("flanneld-rs").chain(args).map(String::from);
            assert!(Options::parse_go_style(args).is_err());
        }
    }
}
