//! The WireGuard tunnels of this node: its identity, and whoever carries the packets, the kernel or this process.

mod identity;
mod user_space;

pub use identity::Identity;

use kernel::Overlay;
use kernel::netlink::Netlink;
use kernel::wireguard::{Found, Interface, PublicKey, SESSION_LIFE, WireGuard, announced, moved, peers_of};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Brings tunnels to the state that an overlay asks for. Devices are made, and given addresses and routes, elsewhere.
pub struct Tunnels {
    identity: Identity,
    /// the UDP port of each device
    ports: BTreeMap<String, u16>,
    carrier: Carrier,
    /// what was announced when it was last set: tells an announcement that has changed from a peer that has moved
    before: BTreeMap<String, BTreeMap<PublicKey, SocketAddr>>,
    /// after so long without a packet nothing is kept of a session in this process
    rest: Duration,
}

enum Carrier {
    Kernel(WireGuard),
    /// devices by name, with the index of their TUN device
    Process(BTreeMap<String, (u32, user_space::Device)>),
}

impl Tunnels {
    /// Those of `identity` on the devices of `ports`, carried by `kernel` if it is given, else by this process.
    pub fn new(identity: Identity, ports: BTreeMap<String, u16>, kernel: Option<WireGuard>) -> Self {
        let carrier = kernel.map_or_else(|| Carrier::Process(BTreeMap::new()), Carrier::Kernel);
        // Who has moved nothing for that long has no keys left, but for a handshake that has not come to an end.
        Tunnels { identity, ports, carrier, before: BTreeMap::new(), rest: SESSION_LIFE }
    }

    /// The same, but sessions that this process carries are forgotten when nothing has moved in them for `rest`, and not for as
    /// long as their keys are good. For tests, which have no time.
    pub fn resting_after(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// Brings the tunnels to what `overlay` says; that of a device which it has no more is closed. Each stands for itself.
    ///
    /// # Errors
    /// What could not be done, for each device.
    pub fn ensure(&mut self, netlink: &mut Netlink, overlay: &Overlay) -> Result<(), Vec<String>> {
        if let Carrier::Process(devices) = &mut self.carrier {
            devices.retain(|name, _| overlay.links.contains_key(name));
        }
        self.before.retain(|name, _| overlay.links.contains_key(name));
        let mut failures = Vec::new();
        for (name, port) in self.ports.iter().filter(|(name, _)| overlay.links.contains_key(*name)) {
            let Identity { private_key, public_key } = self.identity.clone();
            let wanted = Interface { private_key, public_key, port: *port, peers: peers_of(overlay, name) };
            let moved = self.before.get(name).map_or_else(BTreeSet::new, |before| moved(before, &wanted.peers));
            let ensured = match &mut self.carrier {
                Carrier::Kernel(kernel) => kernel.ensure(name, &wanted, &moved),
                Carrier::Process(devices) => carry(netlink, devices, name, &wanted, &moved, self.rest),
            };
            match ensured {
                Ok(changes) => {
                    if changes > 0 {
                        tracing::info!("{changes} changes of the peers of {name}");
                    }
                    self.before.insert(name.clone(), announced(&wanted.peers));
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// The peers of a device as they are, with the age of their handshakes.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn found(&mut self, device: &str) -> kernel::Result<BTreeMap<PublicKey, Found>> {
        match &mut self.carrier {
            Carrier::Kernel(kernel) => kernel.device(device).map(|device| device.peers),
            Carrier::Process(devices) => Ok(devices.get(device).map(|(_, device)| device.found()).unwrap_or_default()),
        }
    }

    /// How many sessions of a device this process has in memory. The kernel does not tell of its own.
    pub fn awake(&self, device: &str) -> usize {
        match &self.carrier {
            Carrier::Kernel(_) => 0,
            Carrier::Process(devices) => devices.get(device).map_or(0, |(_, device)| device.awake()),
        }
    }

    /// What people should know of sessions that do not come about.
    pub fn complaints(&self) -> Vec<String> {
        match &self.carrier {
            Carrier::Kernel(_) => Vec::new(),
            Carrier::Process(devices) => devices.values().flat_map(|(_, device)| device.complaints()).collect(),
        }
    }
}

fn carry(
    netlink: &mut Netlink,
    devices: &mut BTreeMap<String, (u32, user_space::Device)>,
    name: &str,
    wanted: &Interface,
    moved: &BTreeSet<PublicKey>,
    rest: Duration,
) -> kernel::Result<usize> {
    let index = netlink.link(name)?.map(|link| link.index);
    let index =
        index.ok_or_else(|| kernel::Error::new(format!("carrying the packets of {name}"), nix::Error::ENODEV))?;
    // One that was deleted and made anew is another device, and hands its packets to nobody yet.
    if !devices.get(name).is_some_and(|(of, device)| *of == index && device.is_of(wanted)) {
        // Its port must be free for the new one.
        devices.remove(name);
        devices.insert(name.to_owned(), (index, user_space::Device::start(name, wanted, rest)?));
        tracing::info!("carrying the packets of {name} in this process, UDP port {}", wanted.port);
    }
    devices.get_mut(name).map_or(Ok(0), |(_, device)| Ok(device.ensure(wanted, moved)))
}
