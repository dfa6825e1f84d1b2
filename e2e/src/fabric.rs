//! The wires between nodes: one switch, and hosts with a cable to it.

use crate::{Result, eventually};
use ipnetwork::{IpNetwork, Ipv4Network};
use kernel::Mac;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The underlay network that every host has an address in.
pub const UNDERLAY: &str = "192.168.50.0/24";
/// The switch's own address, the hosts' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// The name of a host's interface to the switch.
pub const UPLINK: &str = "eth0";
const SWITCH: &str = "switch0";
const LENGTH: u8 = 24;
/// RTPROT_STATIC of linux/rtnetlink.h
const STATIC: u8 = 4;
/// The kernel looks at carriers at least once a second.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);

/// A switch in a namespace of its own, which is also a host on it with the address [`GATEWAY`].
#[derive(Debug)]
pub struct Fabric {
    network: Netns,
}

/// A machine as far as networking goes: a namespace with a cable to the switch.
#[derive(Debug)]
pub struct Host {
    /// name, also that of its port on the switch
    pub name: String,
    /// its network namespace
    pub network: Netns,
    /// its address on the fabric
    pub address: Ipv4Addr,
}

impl Fabric {
    /// A switch without hosts.
    pub fn new() -> Result<Self> {
        let network = Netns::create()?;
        let mut netlink = Netlink::open_in(&network)?;
        netlink.create_bridge(SWITCH, Mac::derive(SWITCH), None, "")?;
        let switch = netlink.link(SWITCH)?.ok_or("the switch was not made")?.index;
        netlink.add_address(switch, address(GATEWAY)?)?;
        up(&mut netlink, switch)?;
        loopback(&mut netlink)?;
        Ok(Fabric { network })
    }

    /// The switch's namespace, where services that all nodes use can run.
    pub fn network(&self) -> &Netns {
        &self.network
    }

    /// Connects a new host; `name` (at most 15 bytes) and `number` (2 to 254, its address) must be new on this fabric.
    pub fn connect(&self, name: &str, number: u8) -> Result<Host> {
        let network = Netns::create()?;
        let [a, b, c, _] = GATEWAY.octets();
        let host = Host { name: name.into(), network, address: Ipv4Addr::new(a, b, c, number) };
        let mut switch = Netlink::open_in(&self.network)?;
        let port = switch.link(SWITCH)?.ok_or("the switch is gone")?.index;
        switch.create_veth(&VethSpec {
            name,
            alias: "",
            mac: None,
            mtu: None,
            master: Some(port),
            hairpin: false,
            up: true,
            peer_name: UPLINK,
            peer_mac: None,
            peer_netns: &host.network,
        })?;
        let mut netlink = Netlink::open_in(&host.network)?;
        loopback(&mut netlink)?;
        let uplink = netlink.link(UPLINK)?.ok_or("the cable has no end in the host")?.index;
        netlink.add_address(uplink, address(host.address)?)?;
        up(&mut netlink, uplink)?;
        // An administrator's route, not one of the daemon's, which it would remove.
        let route = RouteSpec { via: Some(GATEWAY.into()), protocol: STATIC, ..RouteSpec::default() };
        netlink.replace_route(&route)?;
        wait_for_carrier(&mut netlink, UPLINK)?;
        wait_for_carrier(&mut switch, name)?;
        wait_for_carrier(&mut switch, SWITCH)?;
        Ok(host)
    }
}

fn address(address: Ipv4Addr) -> Result<IpNetwork> {
    Ok(IpNetwork::V4(Ipv4Network::new(address, LENGTH)?))
}

fn up(netlink: &mut Netlink, index: u32) -> Result<()> {
    Ok(netlink.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })?)
}

/// The kernel notices a carrier in the background, and drops packets until it has.
fn wait_for_carrier(netlink: &mut Netlink, name: &str) -> Result<()> {
    eventually(CARRIER_LIMIT, || match netlink.link(name)? {
        Some(link) if link.running => Ok(()),
        _ => Err(format!("{name} has no carrier").into()),
    })
}

fn loopback(netlink: &mut Netlink) -> Result<()> {
    let index = netlink.link("lo")?.ok_or("no loopback device")?.index;
    up(netlink, index)
}
