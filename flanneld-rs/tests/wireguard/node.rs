//! A node with a tunnel, and two of them with a wire.

use flanneld_rs::wireguard::{Identity, Tunnels};
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::wireguard::{Remote, SecretKey};
use kernel::{Overlay, Route, Scope, TunLink, Tunnel, apply, diff, observe};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) const DEVICE: &str = "flannel-wg";
pub(crate) const PORT: u16 = 51820;
/// Generous: a loaded machine. A handshake that is lost is repeated after 5 s.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// A node with one tunnel device. Its pods' address is the device's own.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) netlink: Netlink,
    pub(crate) identity: Identity,
    pub(crate) overlay: Overlay,
    pub(crate) tunnels: Tunnels,
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity::new(SecretKey::private([number; 32]))
}

pub(crate) fn tunnels(identity: &Identity) -> Tunnels {
    Tunnels::new(identity.clone(), BTreeMap::from([(DEVICE.into(), PORT)]), None)
}

pub(crate) fn pod(number: u8) -> [IpAddr; 2] {
    [format!("10.42.{number}.0").parse().unwrap(), format!("fd00:42:{number}::").parse().unwrap()]
}

pub(crate) fn underlay(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

impl Node {
    pub(crate) fn new(number: u8) -> Self {
        let netns = Netns::create().unwrap();
        let netlink = Netlink::open_in(&netns).unwrap();
        let mut overlay = Overlay::default();
        overlay.links.insert(DEVICE.into(), Tunnel::Tun(TunLink { mtu: 1440 }));
        overlay.addresses = pod(number).map(|address| (DEVICE.into(), address.into())).into();
        let identity = identity(number);
        let tunnels = tunnels(&identity);
        Node { netns, netlink, identity, overlay, tunnels }
    }

    pub(crate) fn knows(
        &mut self,
        identity: &Identity,
        number: u8,
        endpoint: SocketAddr,
        preshared: Option<SecretKey>,
    ) {
        let remote = Remote { preshared_key: preshared, endpoint, keepalive: 0 };
        self.overlay.peers.insert((DEVICE.into(), identity.public_key), remote);
        for (address, prefix) in pod(number).into_iter().zip([24, 64]) {
            let subnet = ipnetwork::IpNetwork::new(address, prefix).unwrap();
            self.overlay.allowed.insert((DEVICE.into(), subnet), identity.public_key);
            self.overlay.routes.insert(subnet, Route { via: None, dev: DEVICE.into(), onlink: false });
        }
    }

    /// One pass of the daemon's loop.
    pub(crate) fn reconcile(&mut self) {
        let scope = Scope { devices: BTreeSet::from([DEVICE.into()]), networks: Vec::new(), own: Vec::new() };
        let changes = diff(&observe(&mut self.netlink, &scope).unwrap(), &self.overlay);
        assert_eq!(apply(&mut self.netlink, &changes), []);
        let (tunnels, netlink, overlay) = (&mut self.tunnels, &mut self.netlink, &self.overlay);
        self.netns.run(|| tunnels.ensure(netlink, overlay)).unwrap().unwrap();
    }

    /// The daemon of this node is killed, and started again.
    pub(crate) fn restart(&mut self) {
        self.tunnels = tunnels(&self.identity);
        self.reconcile();
    }

    pub(crate) fn socket(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address.into(), port);
        let socket = self.netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }
}

/// Two nodes, 1 and 2, who know each other.
pub(crate) fn pair() -> (Node, Node) {
    let (mut one, mut two) = wired();
    let (first, second) = (one.identity.clone(), two.identity.clone());
    one.knows(&second, 2, SocketAddr::new(underlay(2), PORT), None);
    two.knows(&first, 1, SocketAddr::new(underlay(1), PORT), None);
    one.reconcile();
    two.reconcile();
    (one, two)
}

pub(crate) fn wired() -> (Node, Node) {
    let (mut one, mut two) = (Node::new(1), Node::new(2));
    let wire = VethSpec { up: true, ..VethSpec::new("eth0", "eth0", &two.netns) };
    one.netlink.create_veth(&wire).unwrap();
    for (number, node) in [(1, &mut one), (2, &mut two)] {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        for name in ["lo", "eth0"] {
            let index = node.netlink.link(name).unwrap().unwrap().index;
            node.netlink.set_link(index, &up).unwrap();
        }
        let index = node.netlink.link("eth0").unwrap().unwrap().index;
        node.netlink.add_address(index, ipnetwork::IpNetwork::new(underlay(number), 24).unwrap()).unwrap();
    }
    (one, two)
}

/// Whether one datagram comes through from `one` to `two`.
pub(crate) fn passes(one: &Node, two: &Node, family: usize) -> bool {
    let (from, to) = (one.socket(pod(1)[family], 0), two.socket(pod(2)[family], 4000));
    from.send_to(b"hello", SocketAddr::new(pod(2)[family], 4000)).unwrap();
    let mut buffer = [0; 16];
    to.recv_from(&mut buffer).is_ok_and(|(length, _)| &buffer[..length] == b"hello")
}

pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
    }
    start.elapsed()
}
