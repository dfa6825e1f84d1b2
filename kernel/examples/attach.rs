//! The bare kernel work of attaching a pod to a bridge, for `make bench`: what a plugin cannot be faster than. It reads no
//! configuration, allocates nothing, records nothing and prints nothing.
//!
//! `attach <namespace> <bridge> <host end> <address/prefix> <gateway>`, in the namespace of the bridge.

use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{Mac, ROUTE_PROTOCOL};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [netns, bridge, name, address, gateway] = arguments.as_slice() else {
        return Err("wanted: namespace, bridge, host end, address with its prefix length, gateway".into());
    };
    let address: IpNetwork = address.parse()?;
    let mac = Mac::derive(name);
    let netns = Netns::open(Path::new(netns))?;
    let (mut host, mut pod) = (Netlink::open()?, Netlink::open_in(&netns)?);
    let bridge = host.link(bridge)?.ok_or("there is no such bridge")?;
    host.create_veth(&VethSpec {
        name,
        alias: name,
        mac: Some(Mac::derive("host end")),
        mtu: None,
        master: Some(bridge.index),
        hairpin: true,
        up: true,
        peer_name: "eth0",
        peer_mac: Some(mac),
        peer_netns: &netns,
    })?;
    let end = pod.link("eth0")?.ok_or("the peer is missing")?;
    pod.add_address(end.index, address)?;
    pod.set_link(end.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    let default = RouteSpec { via: Some(gateway.parse()?), protocol: ROUTE_PROTOCOL, ..RouteSpec::default() };
    pod.add_route(&default)?;
    host.introduce_neighbour(bridge.index, address.ip(), mac)?;
    // Looking at a link has the kernel open the bridge port at once.
    let near = host.link(name)?.ok_or("the host end is missing")?;
    if near.running { Ok(()) } else { Err("the pair carries no packets yet".into()) }
}
