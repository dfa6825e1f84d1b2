//! The pod's side: the veth pair, and what is configured inside the sandbox.

use crate::plan::{PodPlan, VethPlan};
use crate::plugin::kernel_error;
use crate::tuning::settings;
use cni_spec::{CniError, Code};
use kernel::netlink::{LinkChange, Netlink, RouteEntry, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::{detached, sysctl};
use nix::errno::Errno;

/// Makes the pair, whose peer is born inside the sandbox.
pub(crate) fn create_veth(
    veth: &VethPlan,
    netns: &Netns,
    host: &mut Netlink,
    pod: &mut Netlink,
    bridge: Option<u32>,
) -> Result<(), CniError> {
    let occupied = || {
        CniError::new(
            Code::Kernel,
            format!("{} exists already in the sandbox: delete it, or attach under another CNI_IFNAME", veth.pod),
        )
    };
    if let Some(present) = host.link(&veth.host).map_err(kernel_error)? {
        if pod.link(&veth.pod).map_err(kernel_error)?.is_some() {
            return Err(occupied());
        }
        if present.alias != veth.alias {
            let whose = match present.alias.as_str() {
                "" => "somebody else",
                alias => alias,
            };
            return Err(CniError::new(
                Code::Kernel,
                format!("{} exists already and belongs to {whose}: detach or delete that first", veth.host),
            ));
        }
        // Marked for this very attachment, which is not in its sandbox: a leftover of a crash.
        detached::delete_found(host, &present).map_err(kernel_error)?;
    }
    let spec = VethSpec {
        name: &veth.host,
        alias: &veth.alias,
        mac: Some(veth.host_mac),
        mtu: veth.mtu,
        master: bridge,
        hairpin: veth.hairpin,
        up: true,
        peer_name: &veth.pod,
        peer_mac: Some(veth.mac),
        peer_netns: netns,
    };
    host.create_veth(&spec).map_err(|error| if error.errno == Errno::EEXIST { occupied() } else { kernel_error(error) })
}

/// Gives the pod its addresses and routes.
pub(crate) fn configure_pod(plan: &PodPlan, netns: &Netns, pod: &mut Netlink) -> kernel::Result<()> {
    if plan.ips.iter().any(|ip| ip.address.is_ipv6()) {
        // Runtimes switch IPv6 off in new namespaces; an interface that is given an IPv6 address wants it.
        let _inside = netns.enter()?;
        sysctl::set("net/ipv6/conf/lo/disable_ipv6", "0")?;
        sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", plan.veth.pod), "0")?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    // To switch on what is on is less work than to look first.
    if let Some(loopback) = pod.index_of("lo")? {
        pod.set_link(loopback, &up)?;
    }
    let Some(index) = pod.index_of(&plan.veth.pod)? else {
        let error = kernel::Error::new(format!("looking up {}", plan.veth.pod), Errno::ENODEV);
        return Err(error.because("it vanished: try again"));
    };
    if plan.veth.down {
        return Ok(());
    }
    for ip in &plan.ips {
        pod.add_address(index, ip.address)?;
    }
    pod.set_link(index, &up)?;
    for route in &plan.routes {
        let spec = RouteSpec {
            dst: route.dst,
            via: route.gw,
            dev: Some(index),
            mtu: route.mtu,
            advmss: route.advmss,
            metric: route.priority,
            table: route.table,
            scope: route.scope,
            ..RouteSpec::default()
        };
        match pod.add_route(&spec) {
            Err(error) if error.errno == Errno::EEXIST => yield_or_precede(pod, &spec)?,
            added => added?,
        }
    }
    settings::set_in(netns, &plan.sysctls)
}

/// A route to the destination is there already. That of another interface keeps its place; the one to the interface's own
/// subnet, which came with its address, gives way to a configured one.
fn yield_or_precede(pod: &mut Netlink, spec: &RouteSpec) -> kernel::Result<()> {
    let is_own_subnet = |route: &RouteEntry| route.dst == spec.dst && route.dev == spec.dev && route.via.is_none();
    if spec.via.is_none() || !pod.routes()?.iter().any(is_own_subnet) {
        return Ok(());
    }
    match pod.prepend_route(spec) {
        Err(error) if error.errno == Errno::EEXIST => Ok(()),
        added => added,
    }
}
