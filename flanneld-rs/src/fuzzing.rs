//! A way in for the fuzz targets: what stores, peers and packets say. Not part of any build but theirs.

use crate::backend::{Backend, Means, Node, Work, udp};
use crate::family::{Family, PerFamily};
use crate::firewall::{self, Policy};
use crate::lease::{Lease, LeaseTable};
use crate::network_config::NetworkConfig;
use crate::options::Options;
use crate::store;
use crate::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use kernel::wireguard::PublicKey;
use std::collections::BTreeSet;

/// What a daemon wrote down of its store.
pub fn last_known(content: &[u8]) {
    crate::last_known::rewrite(content);
}

/// The content of a lease file, and what we would write for it.
pub fn lease_record(key: &str, content: &[u8]) -> Option<String> {
    store::rewrite_record(key, content)
}

/// A list of nodes that an API server sends in parts of `size` bytes.
pub fn node_list(size: usize, text: &[u8]) {
    store::kubernetes::list(size, text);
}

/// The lines of its watch, where families are in use by the two bits of `families`.
pub fn node_events(families: u8, text: &[u8]) {
    let in_use = |family: &Family| families & if *family == Family::V4 { 1 } else { 2 } != 0;
    let families: Vec<Family> = Family::ALL.into_iter().filter(in_use).collect();
    store::kubernetes::watch(&families, text);
}

/// An answer of it that is no success.
pub fn refusal(code: u16, retry_after: &[u8], text: &[u8]) {
    store::kubernetes::refused(code, retry_after, text);
}

/// A packet that comes to a node with the backend `udp`.
pub fn packet(family: Family, bytes: &[u8]) {
    udp::route(family, bytes);
}

/// A network configuration, and one that is to follow it.
pub fn network_config(now: &str, wanted: &str) {
    let Ok(now) = NetworkConfig::parse(now) else { return };
    let _ = (now.networks(), now.families());
    assert_eq!(now.change_to(&now, None, &[]), Ok(Vec::new()));
    if let Ok(wanted) = NetworkConfig::parse(wanted) {
        let _ = now.change_to(&wanted, None, &[[192, 168, 0, 1].into()]);
    }
}

/// The words of a command line: the rules that follow from it can be told to the kernel.
pub fn options(words: impl Iterator<Item = String>) {
    let Ok(options) = Options::parse_go_style(std::iter::once("flanneld-rs".into()).chain(words)) else { return };
    let _ = (options.without_effect.remarks(), options.net_config_file(), options.renew_margin());
    let _ = (options.kubernetes.api_url(), options.kubernetes.kubeconfig(), options.kubernetes.pod());
    let (networks, own) = (pods("10.5.0.0/16", "fd00:5::/48"), pods("10.5.1.0/24", "fd00:5:0:1::/64"));
    let node = firewall::Node { networks: &networks, own: &own, tunnels: &BTreeSet::new() };
    for table in firewall::tables(&Policy::from(&options), &node) {
        kernel::fuzzing::table(&table).expect("what was taken can be told to the kernel");
    }
}

/// A network configuration, and the leases of peers as they stand in a store (a key and a value in turns): what is wanted of
/// the kernel for them is a sum of parts, and none of them is for addresses outside the pod network.
pub fn peers(config: &str, leases: &[(String, &[u8])]) {
    let Ok(config) = NetworkConfig::parse(config) else { return };
    let means = Means { wireguard: Some((PublicKey([1; 32]), false)), ..Means::default() };
    let Ok(backend) = Backend::new(&config, means) else { return };
    let (networks, families, uplink) = (config.networks(), config.families(), uplink());
    let announcement = backend.announcement(&uplink, &families);
    let _ = (backend.mtu(&uplink, &families), backend.tunnels(&uplink), backend.devices());
    let parsed = leases.iter().filter_map(|(key, value)| Lease::parse(key, value).ok());
    let leases: LeaseTable = parsed.collect();
    // The first is as good as any for our own.
    let Some(own) = leases.iter().next() else { return };
    let own = Lease { subnets: own.subnets, announcement };
    let node = Node { networks: &networks, uplink: &uplink, own: &own };
    let whole = backend.desired(&node, &leases);
    let is_inside = |network: &IpNetwork| {
        let own = networks.get(Family::of(network.ip()));
        own.is_some_and(|own| own.contains(network.network()) && network.prefix() >= own.prefix())
    };
    for (destination, route) in &backend.peers(&node, &leases).overlay.routes {
        assert!(is_inside(destination), "{route:?}");
    }
    assert!(whole.overlay.routes.len() >= backend.peers(&node, &leases).overlay.routes.len());
    if let Work::Commands(..) | Work::Udp(_) = backend.work(&node, &leases) {}
}

fn pods(v4: &str, v6: &str) -> PerFamily<IpNetwork> {
    PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

fn uplink() -> Uplink {
    let way = |text: &str| {
        let address: IpNetwork = text.parse().ok()?;
        Some(Way {
            interface: "eth0".into(),
            mtu: 1500,
            local: address.ip(),
            public: address.ip(),
            translated: false,
            on_link: vec![address],
            drivers: Default::default(),
        })
    };
    Uplink { ways: PerFamily { v4: way("192.168.0.1/24"), v6: way("2001:db8::1/64") } }
}
