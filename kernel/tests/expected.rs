//! Our own changes are no news, and neither is what concerns others; what somebody does to ours is.
#![cfg(feature = "watch")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::watch::{Expected, Wake, Watch};
use kernel::{Mac, Overlay, Route, Scope, Tunnel, VxlanLink, apply, diff, observe, sysctl};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(60);

struct Node {
    namespace: Netns,
    netlink: Netlink,
    watch: Watch,
    overlay: Overlay,
    scope: Scope,
    devices: BTreeMap<u32, String>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

impl Node {
    async fn new() -> Self {
        let namespace = Netns::create().expect("these tests make network namespaces: run them as root");
        let mut netlink = Netlink::open_in(&namespace).unwrap();
        for (name, peer) in [("eth0", "far0"), ("veth0", "pod0")] {
            let spec = VethSpec { up: true, ..VethSpec::new(name, peer, &namespace) };
            netlink.create_veth(&spec).unwrap();
            let peer = netlink.link(peer).unwrap().unwrap().index;
            netlink.set_link(peer, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        }
        let eth0 = netlink.link("eth0").unwrap().unwrap().index;
        netlink.add_address(eth0, network("192.0.2.1/24")).unwrap();
        netlink.add_address(eth0, network("2001:db8::1/64")).unwrap();
        let watch = Watch::open_in(&namespace).unwrap();
        let scope = Scope {
            devices: ["flannel.1".into(), "flannel-v6.1".into()].into(),
            networks: vec![network("10.5.0.0/16"), network("fd00:5::/32")],
            own: Vec::new(),
        };
        let (overlay, devices) = (Overlay::default(), BTreeMap::new());
        let mut node = Node { namespace, netlink, watch, overlay, scope, devices };
        node.bring(desired(2));
        while timeout(2 * QUIET, node.watch.changed()).await.is_ok() {}
        node
    }

    /// Brings the kernel to `overlay` as the daemon does.
    fn bring(&mut self, overlay: Overlay) {
        let changes = diff(&observe(&mut self.netlink, &self.scope).unwrap(), &overlay);
        assert_eq!(apply(&mut self.netlink, &changes), []);
        self.devices = Expected::devices(&mut self.netlink, &overlay).unwrap();
        self.overlay = overlay;
    }

    /// What is told within a while.
    async fn news(&mut self, limit: Duration) -> Option<Wake> {
        let expected = Expected { overlay: &self.overlay, scope: &self.scope, devices: &self.devices };
        timeout(limit, self.watch.deviated(&expected)).await.ok().map(Result::unwrap)
    }

    async fn stays_quiet(&mut self, after: &str) {
        assert_eq!(self.news(QUIET).await, None, "after {after}");
    }

    fn index(&mut self, name: &str) -> u32 {
        self.netlink.link(name).unwrap().unwrap().index
    }
}

const FAMILIES: [(&str, &str, &str); 2] =
    [("flannel.1", "192.0.2.1", "10.5.{}.0/24"), ("flannel-v6.1", "2001:db8::1", "fd00:5:{}::/64")];

fn desired(peers: u8) -> Overlay {
    let mut overlay = Overlay::default();
    for (device, local, pattern) in FAMILIES {
        let subnet = |number: u8| network(&pattern.replace("{}", &number.to_string()));
        let link = VxlanLink {
            vni: 1,
            port: 8472,
            underlay: "eth0".into(),
            local: ip(local),
            mac: Mac::derive(device),
            mtu: 1400,
            learning: false,
            gbp: false,
            tx_checksum: None,
        };
        overlay.links.insert(device.into(), Tunnel::Vxlan(link));
        overlay.addresses.insert((device.into(), IpNetwork::from(subnet(1).network())));
        for peer in 2..2 + peers {
            let (gateway, mac) = (subnet(peer).network(), Mac::derive(&peer.to_string()));
            let outer = ip(&if gateway.is_ipv4() { format!("192.0.2.{peer}") } else { format!("2001:db8::{peer}") });
            overlay.neighbours.insert((device.into(), gateway), mac);
            overlay.fdb.insert((device.into(), mac), outer);
            overlay.routes.insert(subnet(peer), Route { via: Some(gateway), dev: device.into(), onlink: true });
        }
        // As host-gw has it.
        let (dst, via) =
            if ip(local).is_ipv4() { ("10.5.200.0/24", "192.0.2.9") } else { ("fd00:5:200::/64", "2001:db8::9") };
        overlay.routes.insert(network(dst), Route { via: Some(ip(via)), dev: "eth0".into(), onlink: false });
    }
    overlay
}

fn on_one_thread(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn our_own_changes_are_no_news() {
    on_one_thread(async {
        let mut node = Node::new().await;
        for peers in [20, 3, 1, 20] {
            node.bring(desired(peers));
            node.stays_quiet(&format!("a change to {peers} peers")).await;
        }
        // One peer gets another MAC address, another public address, and is replaced.
        let mut other = desired(20);
        let key = ("flannel.1".to_owned(), Mac::derive("2"));
        other.fdb.insert(key.clone(), ip("192.0.2.77"));
        node.bring(other.clone());
        node.stays_quiet("another public address").await;
        let outer = other.fdb.remove(&key).unwrap();
        other.fdb.insert((key.0, Mac::derive("new")), outer);
        other.neighbours.insert(("flannel.1".into(), ip("10.5.2.0")), Mac::derive("new"));
        node.bring(other);
        node.stays_quiet("another MAC address").await;
    });
}

#[test]
fn what_is_others_does_not_touch_the_overlay() {
    on_one_thread(async {
        let mut node = Node::new().await;
        let veth0 = node.index("veth0");
        let others = Wake { others: true, ..Wake::default() };
        node.netlink.set_link(veth0, &LinkChange { mtu: Some(1300), ..LinkChange::default() }).unwrap();
        assert_eq!(node.news(SOON).await, Some(others));
        node.netlink.add_address(veth0, network("198.51.100.1/24")).unwrap();
        assert_eq!(node.news(SOON).await, Some(others));
        let route = RouteSpec {
            dst: network("10.9.0.0/16"),
            via: Some(ip("198.51.100.9")),
            dev: Some(veth0),
            protocol: 4,
            ..RouteSpec::default()
        };
        node.netlink.add_route(&route).unwrap();
        assert_eq!(node.news(SOON).await, Some(others));
        node.netlink.set_neighbour(veth0, ip("198.51.100.7"), Mac::derive("pod")).unwrap();
        node.netlink.delete_neighbour(veth0, ip("198.51.100.7")).unwrap();
        node.stays_quiet("a neighbour of a pod").await;
    });
}

#[test]
fn what_is_done_to_ours_is_news() {
    on_one_thread(async {
        let mut node = Node::new().await;
        let wanted = desired(2);
        for (device, _, pattern) in FAMILIES {
            let peer = network(&pattern.replace("{}", "2"));
            let via = peer.network();
            let index = node.index(device);
            let outer = wanted.fdb[&(device.to_owned(), Mac::derive("2"))];
            let route = RouteSpec { dst: peer, via: Some(via), dev: Some(index), onlink: true, ..RouteSpec::default() };
            type Fault<'a> = (&'a str, Box<dyn Fn(&mut Netlink) + 'a>);
            let faults: Vec<Fault<'_>> = vec![
                ("route removed", Box::new(|netlink| assert!(netlink.delete_route(&route).unwrap()))),
                (
                    "stray route added",
                    Box::new(|netlink| {
                        let dst = network(&pattern.replace("{}", "99"));
                        netlink.add_route(&RouteSpec { dst, ..route.clone() }).unwrap();
                    }),
                ),
                ("neighbour removed", Box::new(|netlink| assert!(netlink.delete_neighbour(index, via).unwrap()))),
                ("neighbour changed", Box::new(|netlink| netlink.set_neighbour(index, via, Mac::derive("x")).unwrap())),
                (
                    "neighbour no more permanent",
                    Box::new(|netlink| netlink.introduce_neighbour(index, via, Mac::derive("2")).unwrap()),
                ),
                (
                    "forwarding entry removed",
                    Box::new(|netlink| assert!(netlink.delete_fdb(index, Mac::derive("2"), outer).unwrap())),
                ),
                (
                    "forwarding entry added",
                    Box::new(|netlink| netlink.set_fdb(index, Mac::derive("y"), outer).unwrap()),
                ),
                (
                    "address removed",
                    Box::new(|netlink| {
                        let own = network(&pattern.replace("{}", "1")).network();
                        assert!(netlink.delete_address(index, IpNetwork::from(own)).unwrap());
                    }),
                ),
                (
                    "MTU changed",
                    Box::new(|netlink| {
                        netlink.set_link(index, &LinkChange { mtu: Some(1300), ..LinkChange::default() }).unwrap();
                    }),
                ),
                (
                    "checksum offload switched",
                    Box::new(|netlink| {
                        let on = netlink.tx_checksum(device).unwrap().unwrap();
                        netlink.set_tx_checksum(device, !on).unwrap();
                    }),
                ),
                ("device removed", Box::new(|netlink| assert!(netlink.delete_link(device).unwrap()))),
            ];
            for (what, fault) in faults {
                fault(&mut node.netlink);
                let wake = node.news(SOON).await.unwrap_or_else(|| panic!("{device}: {what} was not told"));
                assert!(wake.touches_overlay(), "{device}: {what}: {wake:?}");
                node.bring(wanted.clone());
                // A device that was made or changed is looked at once more.
                while node.news(QUIET).await.is_some() {}
            }
        }
    });
}

#[test]
fn the_underlay_and_forwarding_count() {
    on_one_thread(async {
        let mut node = Node::new().await;
        let eth0 = node.index("eth0");
        node.netlink.set_link(eth0, &LinkChange { mtu: Some(1300), ..LinkChange::default() }).unwrap();
        assert!(node.news(SOON).await.unwrap().links);
        node.netlink.add_address(eth0, network("192.0.2.7/24")).unwrap();
        assert!(node.news(SOON).await.unwrap().addresses);
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.namespace.run(|| sysctl::set(key, "1").unwrap()).unwrap();
            while node.news(QUIET).await.is_some() {}
            node.namespace.run(|| sysctl::set(key, "0").unwrap()).unwrap();
            assert!(node.news(SOON).await.unwrap_or_default().forwarding, "{key}");
            while node.news(QUIET).await.is_some() {}
        }
    });
}
