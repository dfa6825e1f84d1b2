//! The wires between nodes: one switch, and hosts with a cable to it.

use crate::{Result, eventually};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, sysctl};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The underlay network that every host has an address in.
pub const UNDERLAY: &str = "192.168.50.0/24";
/// The switch's own address, the hosts' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// The name of a host's interface to the switch.
pub const UPLINK: &str = "eth0";
const SWITCH: &str = "switch0";
const LENGTHS: (u8, u8) = (24, 64);
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
    /// its IPv4 address on the fabric
    pub address: Ipv4Addr,
    port: String,
}

impl Host {
    /// Its address on the fabric of the same family as `example`.
    pub fn address_like(&self, example: IpAddr) -> IpAddr {
        let [_, _, _, number] = self.address.octets();
        if example.is_ipv4() { self.address.into() } else { in_ipv6(number).into() }
    }

    /// Moves it to another address of each family on the fabric, as a lease of DHCP does; what was bound to the old ones goes.
    pub fn renumber(&mut self, number: u8) -> Result<()> {
        let mut netlink = Netlink::open_in(&self.network)?;
        let uplink = netlink.link(UPLINK)?.ok_or("the cable is gone")?.index;
        // With the first IPv4 address of a network the others of the network go, and with the last one the default route.
        for address in addresses(self.address.octets()[3])? {
            netlink.delete_address(uplink, address)?;
        }
        self.address = in_ipv4(number);
        plug_in(&mut netlink, uplink, number)?;
        default_route(&mut netlink)
    }

    /// Gives it back those addresses and routes that a device loses when it goes down.
    pub fn readdress(&self) -> Result<()> {
        let mut netlink = Netlink::open_in(&self.network)?;
        let uplink = netlink.link(UPLINK)?.ok_or("the cable is gone")?.index;
        plug_in(&mut netlink, uplink, self.address.octets()[3])?;
        default_route(&mut netlink)
    }
}

impl Fabric {
    /// A switch without hosts.
    pub fn new() -> Result<Self> {
        let network = Netns::create()?;
        let mut netlink = Netlink::open_in(&network)?;
        netlink.create_bridge(SWITCH, Mac::derive(SWITCH), None, "")?;
        let switch = netlink.link(SWITCH)?.ok_or("the switch was not made")?.index;
        plug_in(&mut netlink, switch, GATEWAY.octets()[3])?;
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
        let host = Host { name: name.into(), network: Netns::create()?, address: in_ipv4(number), port: name.into() };
        self.cable(&host)?;
        Ok(host)
    }

    /// Takes a host's network card out and puts a new one in.
    pub fn replace_cable(&self, host: &Host) -> Result<()> {
        Netlink::open_in(&host.network)?.delete_link(UPLINK)?;
        self.cable(host)
    }

    fn cable(&self, host: &Host) -> Result<()> {
        let mut switch = Netlink::open_in(&self.network)?;
        let port = switch.link(SWITCH)?.ok_or("the switch is gone")?.index;
        switch.create_veth(&VethSpec {
            name: &host.port,
            alias: "",
            mac: None,
            mtu: None,
            master: Some(port),
            hairpin: false,
            up: true,
            peer_name: UPLINK,
            // The same one each time, as that of a card whose driver is loaded again.
            peer_mac: Some(Mac::derive(&host.port)),
            peer_netns: &host.network,
        })?;
        let mut netlink = Netlink::open_in(&host.network)?;
        loopback(&mut netlink)?;
        let uplink = netlink.link(UPLINK)?.ok_or("the cable has no end in the host")?.index;
        // Else the kernel answers to and asks for neighbours only after a second or two, each time that the device comes up.
        host.network.run(|| sysctl::set(&format!("net/ipv6/conf/{UPLINK}/accept_dad"), "0"))??;
        plug_in(&mut netlink, uplink, host.address.octets()[3])?;
        up(&mut netlink, uplink)?;
        default_route(&mut netlink)?;
        wait_for_carrier(&mut netlink, UPLINK)?;
        wait_for_carrier(&mut switch, &host.port)?;
        wait_for_carrier(&mut switch, SWITCH)
    }
}

/// The address with this number on the fabric, in 192.168.50.0/24.
fn in_ipv4(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = GATEWAY.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// The same in 2001:db8:50::/64.
fn in_ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x50, 0, 0, 0, 0, number.into())
}

fn addresses(number: u8) -> Result<[IpNetwork; 2]> {
    let v4 = Ipv4Network::new(in_ipv4(number), LENGTHS.0)?;
    Ok([IpNetwork::V4(v4), IpNetwork::V6(Ipv6Network::new(in_ipv6(number), LENGTHS.1)?)])
}

fn plug_in(netlink: &mut Netlink, index: u32, number: u8) -> Result<()> {
    for address in addresses(number)? {
        netlink.add_address(index, address)?;
    }
    Ok(())
}

/// An administrator's route, not one of the daemon's, which it would remove.
fn default_route(netlink: &mut Netlink) -> Result<()> {
    let route = RouteSpec { via: Some(GATEWAY.into()), protocol: STATIC, ..RouteSpec::default() };
    Ok(netlink.replace_route(&route)?)
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
