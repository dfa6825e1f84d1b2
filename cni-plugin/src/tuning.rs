//! `type: tuning`: kernel parameters and settings of the pod's interface, after the plugins that made it.

pub(crate) mod backup;
pub(crate) mod settings;

use crate::add::open_sandbox;
use crate::check;
use crate::plugin::kernel_error;
use crate::status::unavailable;
use backup::{Backup, Backups};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use kernel::Mac;
use kernel::netlink::{Link, Netlink};
use kernel::netns::Netns;
use settings::Settings;
use std::net::IpAddr;
use std::path::Path;

/// `type: tuning`
pub(crate) struct Tuning;

impl Plugin for Tuning {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let settings = Settings::parse(config, &sandbox.args, &sandbox.id.ifname)?;
        let Some(mut result) = config.prev_result.clone() else {
            return Err(config
                .field("prevResult")
                .invalid("missing: tuning comes after the plugin that makes the interface"));
        };
        let netns = open_sandbox(sandbox)?;
        let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;
        if let Some(change) = settings.change() {
            let link = find(&mut pod, &sandbox.id.ifname)?;
            Backups::of(config)?.save(&sandbox.id, Backup::of(&link, &settings))?;
            pod.set_link(link.index, &change).map_err(kernel_error)?;
            if let (Some(old), Some(new)) = (link.mac, settings.mac) {
                let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.ip()).collect();
                lead_neighbours(&addresses, old, new).map_err(kernel_error)?;
            }
        }
        settings::set_in(&netns, &settings.sysctls).map_err(kernel_error)?;
        let is_it = |name: &str, netns: &str| name == sandbox.id.ifname && !netns.is_empty();
        for interface in result.interfaces.iter_mut().filter(|interface| is_it(&interface.name, &interface.sandbox)) {
            if let Some(mac) = settings.mac {
                interface.mac = mac.to_string();
            }
            interface.mtu = settings.mtu.or(interface.mtu);
        }
        Ok(result)
    }

    /// Gives the interface its former settings back, where it is a device that outlives the pod. Sysctls go with the
    /// sandbox.
    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        _args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        let backups = Backups::of(config)?;
        if let (Some(backup), Some(netns)) = (backups.load(id), netns.and_then(|path| Netns::open(path).ok()))
            && netns.id() != Netns::current().map_err(kernel_error)?.id()
        {
            let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;
            if let Some(link) = pod.link(&id.ifname).map_err(kernel_error)? {
                pod.set_link(link.index, &backup.change()).map_err(kernel_error)?;
            }
        }
        backups.remove(id)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let settings = Settings::parse(config, &sandbox.args, &sandbox.id.ifname)?;
        let netns = open_sandbox(sandbox)?;
        let mut pod = Netlink::open_in(&netns).map_err(kernel_error)?;
        let mut differences = settings.differences(&find(&mut pod, &sandbox.id.ifname)?);
        differences.extend(settings::differences_in(&netns, &settings.sysctls).map_err(kernel_error)?);
        check::verdict(differences)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        Backups::of(config)?.gc(valid)
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        Settings::parse(config, &Arguments::new(), "eth0").map(drop).map_err(unavailable)
    }
}

/// The host's neighbour entries for the pod follow its new hardware address.
fn lead_neighbours(addresses: &[IpAddr], old: Mac, new: Mac) -> kernel::Result<()> {
    let mut host = Netlink::open()?;
    let entries = host.neighbours(None)?;
    let is_pods = |ip: &IpAddr, mac: Option<Mac>| addresses.contains(ip) && mac == Some(old);
    for entry in entries.iter().filter(|entry| is_pods(&entry.ip, entry.mac)) {
        host.introduce_neighbour(entry.index, entry.ip, new)?;
    }
    Ok(())
}

fn find(pod: &mut Netlink, name: &str) -> Result<Link, CniError> {
    let missing =
        || CniError::new(Code::Kernel, format!("interface {name} is missing in the sandbox: nothing to tune"));
    pod.link(name).map_err(kernel_error)?.ok_or_else(missing)
}
