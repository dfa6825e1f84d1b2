//! ADD: allocate, plan, wire. Whatever fails undoes what it made, and nothing that was there before; the original error is
//! what the runtime reads.

use crate::bridge::ensure_bridge;
use crate::config::{Dialect, PluginConfig};
use crate::plan::{self, PodPlan};
use crate::plugin::{failed, kernel_error};
use crate::pod::{configure_pod, create_veth};
use crate::ready::{await_carrier, await_reception};
use crate::teardown::Remains;
use crate::{masquerade, ptp};
use cni_spec::{AddResult, CniError, Code, NetworkConfig, Sandbox};
use ipnetwork::IpNetwork;
use kernel::Mac;
use kernel::netlink::{Link, Netlink};
use kernel::netns::Netns;
use std::net::IpAddr;

/// Attaches the sandbox.
pub(crate) fn add(dialect: Dialect, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
    let parsed = PluginConfig::parse(dialect, config, &sandbox.args)?;
    let netns = open_sandbox(sandbox)?;
    let allocated = parsed.ipam.add(sandbox, config)?;
    let reserved: Vec<IpAddr> = allocated.ips.iter().map(|ip| ip.address.ip()).collect();
    let made = plan::pod(&parsed, &config.name, &sandbox.id, &allocated).and_then(|plan| {
        let bridge = wire(&plan, sandbox, &config.name, &netns)?;
        Ok(plan.result(bridge, &sandbox.netns))
    });
    if made.is_err() {
        // The reason of the failure is the answer; a failure to undo it would only hide it, and DEL will meet it again.
        let _ = parsed.ipam.undo(sandbox, config, &reserved);
    }
    made
}

/// Opens the sandbox's namespace; one that does not exist is the runtime's error 3.
pub(crate) fn open_sandbox(sandbox: &Sandbox) -> Result<Netns, CniError> {
    let netns =
        Netns::open(&sandbox.netns).map_err(|error| CniError::new(Code::UnknownContainer, error.to_string()))?;
    let own = Netns::current().map_err(kernel_error)?;
    if netns.id() == own.id() {
        return Err(CniError::new(
            Code::InvalidNetns,
            format!("CNI_NETNS {} is the host's own network namespace: a pod needs its own", sandbox.netns.display()),
        ));
    }
    Ok(netns)
}

/// Carries the plan out and returns the address of the bridge, if there is one. Once the pair is made, a failure removes it
/// again.
fn wire(plan: &PodPlan, sandbox: &Sandbox, network: &str, netns: &Netns) -> Result<Option<Mac>, CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    let mut pod = Netlink::open_in(netns).map_err(kernel_error)?;
    let bridge = plan.bridge.as_ref().map(|bridge| ensure_bridge(&mut host, bridge)).transpose()?;
    let bridge_index = bridge.as_ref().map(|bridge| bridge.index);
    let attached = create_veth(&plan.veth, netns, &mut host, &mut pod, bridge_index).and_then(|()| {
        let done = configure(plan, netns, &mut host, &mut pod, bridge.as_ref())
            .and_then(|()| masquerade(plan, sandbox, network))
            .map_err(failed(format!("setting up {} in {}", plan.veth.pod, sandbox.netns.display())));
        if done.is_err() {
            let addresses: Vec<IpAddr> = plan.ips.iter().map(|ip| ip.address.ip()).collect();
            let bridge = bridge.as_ref().map(|bridge| bridge.name.as_str());
            let _ = Remains { id: &sandbox.id, network, netns: None, bridge, addresses: &addresses }.remove();
        }
        done
    });
    match (attached, bridge) {
        (Ok(()), bridge) => Ok(bridge.and_then(|bridge| bridge.mac)),
        (Err(error), Some(bridge)) => Err(match host.link_by_index(bridge.index) {
            Ok(None) => CniError::new(
                Code::TryAgain,
                format!("bridge {} was deleted in the meantime: try again ({})", bridge.name, error.msg),
            ),
            _ => error,
        }),
        (Err(error), None) => Err(error),
    }
}

fn masquerade(plan: &PodPlan, sandbox: &Sandbox, network: &str) -> kernel::Result<()> {
    if !plan.masquerade {
        return Ok(());
    }
    let addresses: Vec<IpNetwork> = plan.ips.iter().map(|ip| ip.address).collect();
    masquerade::add(network, &sandbox.id, &addresses)
}

/// What follows once the pair is there, until packets come through.
fn configure(
    plan: &PodPlan,
    netns: &Netns,
    host: &mut Netlink,
    pod: &mut Netlink,
    bridge: Option<&Link>,
) -> kernel::Result<()> {
    configure_pod(plan, netns, pod)?;
    if plan.veth.isolated
        && let Some(link) = host.link(&plan.veth.host)?
    {
        host.set_isolated(link.index, true)?;
    }
    let addresses = || plan.ips.iter().map(|ip| ip.address.ip());
    match bridge {
        // The host speaks to a reused address at once, instead of to whoever had it before until an old entry expires. The
        // entry is no permanent one: other plugins that take over this node know nothing of it, and hand its address to
        // another pod.
        Some(bridge) => addresses().try_for_each(|ip| host.introduce_neighbour(bridge.index, ip, plan.veth.mac))?,
        None => ptp::connect(plan, host, pod)?,
    }
    if plan.veth.down {
        return Ok(());
    }
    await_carrier(pod, &plan.veth.pod)?;
    await_carrier(host, &plan.veth.host)?;
    if let Some(bridge) = bridge.filter(|bridge| !bridge.running) {
        await_carrier(host, &bridge.name)?;
    }
    addresses().try_for_each(|ip| await_reception(pod, ip))
}
