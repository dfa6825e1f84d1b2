//! Programming routes, neighbours and forwarding entries for many peers, beside iproute2's batch mode.

use super::{Figure, Sample, Wishes};
use crate::fabric::Fabric;
use crate::{Result, tools};
use ipnetwork::{IpNetwork, Ipv4Network};
use kernel::netlink::Netlink;
use kernel::netns::Netns;
use kernel::{Mac, Overlay, Route, Scope, Tunnel, VxlanLink, apply, diff, observe};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEVICE: &str = "flannel.1";

pub(super) fn measure(wishes: &Wishes) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    // The floor that the issue names: raw netlink messages, 64 at a time, as measured before on such a machine.
    for (peers, floor) in [(1000, 17.8), (5000, 336.0)] {
        let desired = overlay(peers)?;
        let (mut batch, mut full, mut idle) = (Sample::default(), Sample::default(), Sample::default());
        for _ in 0..wishes.times(5) {
            batch.add(with_iproute2(&desired)?);
            program(&desired, &mut full, &mut idle)?;
        }
        let note = format!("raw netlink floor on such a machine: {floor} ms");
        let what = format!("full program of {peers} peers (beside `ip -batch` and `bridge -batch`)");
        figures.push(Figure::time(what, full.median()).beside(batch.median()).note(note));
        let note = "reads the kernel, computes no change, writes nothing";
        figures.push(Figure::time(format!("no-op reconcile of {peers} peers"), idle.median()).note(note));
    }
    Ok(figures)
}

/// A node with a VXLAN device and entries for `peers` peers.
fn overlay(peers: u32) -> Result<Overlay> {
    let mut overlay = Overlay::default();
    let own = Ipv4Addr::new(192, 168, 50, 10);
    let link = VxlanLink {
        vni: 1,
        port: 8472,
        underlay: crate::fabric::UPLINK.into(),
        local: own.into(),
        mac: Mac::derive("own"),
        mtu: 1450,
        learning: false,
        gbp: false,
        tx_checksum: None,
    };
    overlay.links.insert(DEVICE.into(), Tunnel::Vxlan(link));
    overlay.addresses.insert((DEVICE.into(), IpNetwork::V4(Ipv4Network::new(Ipv4Addr::new(10, 0, 0, 0), 32)?)));
    for peer in 1..=peers {
        let subnet = Ipv4Addr::from(u32::from_be_bytes([10, 0, 0, 0]) + (peer << 8));
        let mac = Mac::derive(&subnet.to_string());
        let outer = Ipv4Addr::from(u32::from_be_bytes([192, 168, 64, 0]) + peer);
        let route = Route { via: Some(subnet.into()), dev: DEVICE.into(), onlink: true };
        overlay.routes.insert(IpNetwork::V4(Ipv4Network::new(subnet, 24)?), route);
        overlay.neighbours.insert((DEVICE.into(), subnet.into()), mac);
        overlay.fdb.insert((DEVICE.into(), mac), outer.into());
    }
    Ok(overlay)
}

fn program(desired: &Overlay, full: &mut Sample, idle: &mut Sample) -> Result<()> {
    let fabric = Fabric::new()?;
    let host = fabric.connect("host", 10)?;
    let mut netlink = Netlink::open_in(&host.network)?;
    let scope = Scope { devices: [DEVICE.to_owned()].into(), networks: Vec::new(), own: Vec::new() };
    full.measure(|| {
        let changes = diff(&observe(&mut netlink, &scope)?, desired);
        let errors = apply(&mut netlink, &changes);
        errors.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
    })?;
    idle.measure(|| {
        let changes = diff(&observe(&mut netlink, &scope)?, desired);
        if changes.is_empty() {
            Ok(())
        } else {
            Err(format!("changes where none are due: {:?}", changes.first()).into())
        }
    })
}

/// The same entries by iproute2's own tools, which also send them over netlink, one at a time.
fn with_iproute2(desired: &Overlay) -> Result<Duration> {
    let fabric = Fabric::new()?;
    let host = fabric.connect("host", 10)?;
    let (ip, bridge) = (tools::from_package("/sbin/ip", "iproute2")?, tools::from_package("/sbin/bridge", "iproute2")?);
    let own = Ipv4Addr::new(192, 168, 50, 10);
    let (mut first, mut second) = (String::new(), String::new());
    writeln!(first, "link add {DEVICE} type vxlan id 1 local {own} dev eth0 dstport 8472 nolearning")?;
    writeln!(first, "link set {DEVICE} up\naddress add 10.0.0.0/32 dev {DEVICE}")?;
    for (dst, route) in &desired.routes {
        let via = route.via.ok_or("a route without gateway")?;
        writeln!(first, "route add {dst} via {via} dev {DEVICE} onlink")?;
    }
    for ((_, address), mac) in &desired.neighbours {
        writeln!(first, "neigh add {address} lladdr {mac} dev {DEVICE}")?;
    }
    for ((_, mac), outer) in &desired.fdb {
        writeln!(second, "fdb add {mac} dev {DEVICE} dst {outer} self permanent")?;
    }
    let start = Instant::now();
    batch(&host.network, ip, &first)?;
    batch(&host.network, bridge, &second)?;
    Ok(start.elapsed())
}

fn batch(network: &Netns, tool: PathBuf, commands: &str) -> Result<()> {
    network.run(|| {
        let mut child = Command::new(&tool).args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().ok_or("no pipe")?.write_all(commands.as_bytes())?;
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{} -batch: {status}", tool.display()).into()) }
    })?
}
