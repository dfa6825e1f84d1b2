//! One pass from what there is to what there should be. Events only wake it; it looks at the kernel itself, and writes
//! nothing where nothing differs.

use crate::backend::Backend;
use crate::family::{Family, PerFamily};
use crate::files::Files;
use crate::firewall::{self, Policy};
use crate::forwarding::{Lookout, Paths};
use crate::health::{Condition, Health};
use crate::ip_forward::{IpForward, set_if_writable};
use crate::lease::{Announcement, Lease, LeaseTable};
use crate::network_config::NetworkConfig;
use crate::predecessor;
use crate::prerequisites;
use crate::standing::{Cause, Standing};
use crate::uplink::{Choice, Chosen, Tables, Uplink};
use crate::wireguard::Tunnels;
use crate::worker::Worker;
use cni_plugin::attachments::{Attachments, Held};
use cni_plugin::host_ports::HostPorts;
use cni_plugin::restore::Restorer;
use ipam::subnet_env::SubnetEnv;
use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, RouteKind};
use kernel::nft::Nft;
use kernel::watch::{Expected, Wake};
use kernel::{Change, Scope, sysctl};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

/// How much a list of leases is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// the store holds it now, or held it when this daemon last heard from it
    Store,
    /// a former daemon wrote it down some time before it ended: what that one has put into the kernel since is newer
    Memory,
}

/// What a pass works with.
pub struct Reconciler {
    /// the network
    pub config: Arc<NetworkConfig>,
    /// the backend
    pub backend: Backend,
    /// what the operator said of the interface
    pub choice: Choice,
    /// rules that are wanted
    pub policy: Policy,
    /// files to be kept up to date
    pub files: Files,
    /// where findings go
    pub health: Health,
    /// WireGuard tunnels, where the backend has them
    pub tunnels: Option<Tunnels>,
    /// the switch that makes this node forward packets
    pub ip_forward: IpForward,
    host_ports: Restorer<HostPorts>,
    attachments: Restorer<Held>,
    netlink: Netlink,
    nft: Nft,
    uplink: Option<Uplink>,
    /// why each family has the way it has
    reasons: PerFamily<String>,
    scope: Scope,
    standing: Option<Standing>,
    /// of what stands: see [`Expected::devices`]
    devices: BTreeMap<u32, String>,
    took_over: bool,
    /// the subnet is not given to pods
    withheld: bool,
    lookout: Lookout,
    worker: Worker,
}

impl Reconciler {
    /// Opens the kernel's doors.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new(
        config: Arc<NetworkConfig>,
        backend: Backend,
        choice: Choice,
        policy: Policy,
        files: Files,
        (host_ports, attachments): (HostPorts, Attachments),
        health: Health,
    ) -> kernel::Result<Self> {
        let (netlink, nft) = (Netlink::open()?, Nft::open()?);
        Ok(Reconciler {
            scope: backend.scope(&config),
            standing: None,
            devices: BTreeMap::new(),
            config,
            backend,
            choice,
            policy,
            files,
            health,
            tunnels: None,
            ip_forward: IpForward::default(),
            host_ports: Restorer::new(host_ports),
            attachments: Restorer::new(Held::by(attachments)),
            netlink,
            nft,
            uplink: None,
            reasons: PerFamily::default(),
            took_over: false,
            withheld: false,
            lookout: Lookout::default(),
            worker: Worker::default(),
        })
    }

    /// From the next pass on pods get addresses of the lease, or, if it is withheld, none. Returns whether that is new.
    pub fn withholds(&mut self, withheld: bool) -> bool {
        std::mem::replace(&mut self.withheld, withheld) != withheld
    }

    /// Goes over to another configuration, one that this one [can change to](NetworkConfig::change_to); the next pass brings
    /// it about.
    pub fn reconfigure(&mut self, config: Arc<NetworkConfig>) {
        self.backend = self.backend.with(&config.backend);
        // A predecessor's routes are in the networks of the start; in what those have grown to, a route is somebody else's.
        let networks = std::mem::take(&mut self.scope.networks);
        self.scope = Scope { networks, ..self.backend.scope(&config) };
        self.config = config;
        self.standing = None;
    }

    /// Puts back what somebody has removed from nftables of what the plugins have recorded, whether or not there is a lease:
    /// ports of this node that lead to pods, masquerade, firewall, guards. Returns whether all of it is in order.
    pub fn plugins(&mut self) -> bool {
        let ports = self.host_ports.restore(&mut self.nft);
        let attachments = self.attachments.restore(&mut self.nft);
        let mut good = true;
        for (what, restored) in [("host ports", ports), ("pods' nftables", attachments)] {
            if let Ok(true) = restored {
                tracing::info!("restored {what}");
            }
            good &= restored.is_ok();
            self.health.note(what, restored.map_or_else(|error| error.to_string(), |_| String::new()));
        }
        good
    }

    /// What this node should announce, from the interface as it is now. None: there is no usable interface (yet).
    pub fn announcement(&mut self) -> Option<Announcement> {
        let families = self.families();
        match Tables::read(&mut self.netlink, &self.choice) {
            Ok(tables) => {
                let chosen = Uplink::choose(&tables, &self.choice, &families, self.uplink.as_ref());
                self.health.note("underlay", describe(&chosen.lacking));
                self.take(chosen);
            }
            // The state stays as it is.
            Err(error) => self.health.note("underlay", error.to_string()),
        }
        self.uplink.as_ref().map(|uplink| self.backend.announcement(uplink, &families))
    }

    /// Goes by this choice from now on, and tells what is new about it.
    fn take(&mut self, chosen: Chosen) {
        let Chosen { uplink, reasons, candidates, .. } = chosen;
        for (family, way) in uplink.ways.iter() {
            let before = self.uplink.as_ref().and_then(|before| before.ways.get(family));
            let reason = reasons.get(family).map_or("", String::as_str);
            if before != Some(way) || self.reasons.get(family).map(String::as_str) != Some(reason) {
                tracing::info!("{family} underlay: {way}; chosen by {reason} from {candidates}");
                self.backend.remark(way).iter().for_each(|remark| tracing::info!("{family} underlay: {remark}"));
            }
        }
        let uplink = match &self.uplink {
            Some(before) => uplink.remembering(before),
            None => uplink,
        };
        self.uplink = Some(uplink).filter(|uplink| !uplink.ways.is_empty());
        self.reasons = reasons;
    }

    /// Brings kernel and files to what `own` and `leases` ask for. Returns whether all of it succeeded. The overlay is looked
    /// at if `wake`, which is what has been told since the last pass, has to do with it.
    pub fn pass(&mut self, own: &Lease, leases: &Arc<LeaseTable>, source: Source, wake: Wake) -> bool {
        let Some(uplink) = self.uplink.clone() else { return false };
        let short = if wake.touches_overlay() { None } else { self.follow(own, leases, source) };
        let overlay = match short {
            Some(good) => good,
            None => {
                let cause = Cause { uplink: uplink.clone(), own: own.clone(), leases: leases.clone() };
                let brought = self.overlay(cause.clone(), source, wake);
                self.note_overlay(brought, &cause)
            }
        };
        let complaints = self.tunnels.as_ref().map(Tunnels::complaints).unwrap_or_default();
        self.health.note("WireGuard sessions", summary(&complaints));
        let firewall = self.firewall(&uplink, own);
        let files = self.write_files(&uplink, own, overlay && firewall.is_ok());
        let good = overlay && firewall.is_ok() && files.is_ok();
        self.health.set(Condition::Firewall, firewall);
        let forwarding = self.forwarding(&uplink, own);
        self.health.note("forwarding between pods", forwarding);
        self.health.set(Condition::Files, files);
        good
    }

    /// Brings the overlay to what `leases` ask for by the short way, and returns whether that succeeded. None: only a pass can
    /// tell what is to be done.
    pub fn follow(&mut self, own: &Lease, leases: &Arc<LeaseTable>, source: Source) -> Option<bool> {
        let standing = self.standing.take_if(|_| source == Source::Store)?;
        let cause = Cause { uplink: self.uplink.clone()?, own: own.clone(), leases: leases.clone() };
        if standing.is_of(&cause) {
            self.standing = Some(standing);
            return Some(true);
        }
        let (standing, changes) = standing.advance(cause.clone(), &self.backend, &self.config.networks())?;
        let brought = self.carry_out(&changes, standing);
        Some(self.note_overlay(brought, &cause))
    }

    /// What the kernel has, as far as anybody knows. None: the last attempt to bring it about failed.
    pub fn expected(&self) -> Option<Expected<'_>> {
        let standing = self.standing.as_ref()?;
        Some(Expected { overlay: &standing.desired.overlay, scope: &self.scope, devices: &self.devices })
    }

    /// Sees to what this process does itself, which comes after the devices that it works with, and notes whether all went well.
    fn note_overlay(&mut self, brought: Result<(), String>, cause: &Cause) -> bool {
        let work = self.worker.ensure(&cause.work(&self.backend, &self.config.networks()));
        let outcome = both(brought, work);
        let good = outcome.is_ok();
        self.health.set(Condition::Overlay, outcome);
        good
    }

    fn overlay(&mut self, cause: Cause, source: Source, wake: Wake) -> Result<(), String> {
        let own: Vec<IpNetwork> = cause.own.subnets.iter().map(|(_, subnet)| *subnet).collect();
        let in_words = |error: kernel::Error| error.to_string();
        let (mut standing, is_routine) = match self.standing.take() {
            // Where nothing in particular was told, it nearly always stands.
            Some(standing) if standing.is_of(&cause) => (standing, wake == Wake::EVERYTHING),
            _ => {
                let mut desired = cause.desired(&self.backend, &self.config.networks());
                if self.policy.refuse_own {
                    // As flannel's, but behind every route of others, so that a bridge may come later.
                    desired.overlay.refusals.extend(own.iter().map(|subnet| (*subnet, RouteKind::Blackhole)));
                }
                (Standing { cause, desired }, false)
            }
        };
        // A predecessor's blackhole looks like anybody's: what comes after us is not taken for one.
        self.scope.own = if self.took_over { Vec::new() } else { own };
        let wanted = &mut standing.desired.overlay;
        let mut changes = Vec::new();
        if !is_routine || !kernel::is_intact(&mut self.netlink, &self.scope, wanted).map_err(in_words)? {
            let actual = kernel::observe(&mut self.netlink, &self.scope).map_err(in_words)?;
            if source == Source::Memory {
                wanted.give_way_to(&actual);
            }
            changes = kernel::diff(&actual, wanted);
        }
        self.carry_out(&changes, standing)?;
        let settled = self.settle().map_err(in_words);
        // What depends on more than its cause is nothing to go on from.
        if settled.is_err() || source == Source::Memory {
            self.standing = None;
        }
        settled
    }

    /// Sees to what is no part of the overlay's description, and learns which devices it is on.
    fn settle(&mut self) -> kernel::Result<()> {
        let Some(standing) = &self.standing else { return Ok(()) };
        self.devices = Expected::devices(&mut self.netlink, &standing.desired.overlay)?;
        let tunnels: Vec<String> = standing.desired.overlay.links.keys().cloned().collect();
        let mut heard = Vec::new();
        for device in tunnels {
            heard.extend(self.adopt(&device)?);
        }
        self.health.note("router advertisements", heard.join("; "));
        Ok(())
    }

    /// Carries out the changes that lead to `standing`, which stands if all succeed.
    fn carry_out(&mut self, changes: &[Change], standing: Standing) -> Result<(), String> {
        self.health.note("peers left out", summary(&standing.desired.reasons()));
        match changes {
            few if few.len() <= 8 => few.iter().for_each(|change| tracing::info!("{change}")),
            many => tracing::info!("{} changes of links, addresses, neighbours and routes", many.len()),
        }
        let mut failures: Vec<String> =
            kernel::apply(&mut self.netlink, changes).iter().map(ToString::to_string).collect();
        if let Some(tunnels) = &mut self.tunnels {
            failures.extend(tunnels.ensure(&mut self.netlink, &standing.desired.overlay).err().into_iter().flatten());
        }
        if failures.is_empty() {
            self.standing = Some(standing);
            return Ok(());
        }
        Err(summary(&failures))
    }

    /// Keeps a device from hearing router advertisements, and marks one that a predecessor without our mark, such as Go flannel,
    /// has left in use: it is as we want it now, and `uninstall` removes what is marked. Tells what keeps advertisements from
    /// being shut out, if something does.
    fn adopt(&mut self, device: &str) -> kernel::Result<Option<String>> {
        // A router's advertisement would make a default route over the tunnel.
        let of_device = |name: &str| format!("net/ipv6/conf/{device}/{name}");
        let has = |name: &str, value: &str| sysctl::get(&of_device(name)).is_ok_and(|present| present == value);
        let accept_ra = of_device("accept_ra");
        let deaf = has("disable_ipv6", "1") || (has("accept_ra", "1") && has("forwarding", "1"));
        let heard = if sysctl::exists(&accept_ra) { set_if_writable(&accept_ra, "0")?.filter(|_| !deaf) } else { None };
        if let Some(link) = self.netlink.link(device)?.filter(|link| link.alias != kernel::LINK_ALIAS) {
            tracing::info!("taking over device {device}");
            let mark = LinkChange { alias: Some(kernel::LINK_ALIAS.into()), ..LinkChange::default() };
            self.netlink.set_link(link.index, &mark)?;
        }
        Ok(heard)
    }

    fn firewall(&mut self, uplink: &Uplink, own: &Lease) -> Result<(), String> {
        let mut failures = Vec::new();
        let networks = self.config.networks();
        let mut policy = self.policy.clone();
        policy.not_masqueraded.extend(&self.config.not_masqueraded);
        let node = firewall::Node { networks: &networks, own: &own.subnets, tunnels: &self.backend.tunnels(uplink) };
        let wanted = firewall::tables(&policy, &node);
        for table in &wanted {
            match self.nft.ensure(table) {
                Ok(true) => tracing::info!("placed nftables table {}", table.name),
                Ok(false) => {}
                Err(error) => failures.push(error),
            }
        }
        if !self.took_over {
            let ours = Family::ALL.map(|family| (firewall::nft_family(family), firewall::TABLE));
            let unwanted = ours.into_iter().filter(|(family, _)| wanted.iter().all(|table| table.family != *family));
            failures.extend(unwanted.filter_map(|(family, name)| self.nft.delete(family, name).err()));
            // Not before ours stand.
            if failures.is_empty() {
                let left = predecessor::remove_rules(&mut self.nft);
                // What stays for now is looked at again.
                self.took_over = left.is_empty();
                self.health.note("rules of Go flannel", left);
            }
        }
        // Switched on only: others on the node may need it too.
        let mut unset = Vec::new();
        let uplinks = uplink.ways.iter().map(|(_, way)| way.interface.as_str()).collect();
        let mut failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
        for family in networks.families() {
            match self.ip_forward.switch_on(family, &uplinks) {
                Ok(left) => unset.extend(left),
                Err(error) => failures.push(error),
            }
        }
        self.health.note("forwarding", unset.join("; "));
        self.health.note("bridged packets", prerequisites::bridge_netfilter(&self.families()));
        if failures.is_empty() { Ok(()) } else { Err(summary(&failures)) }
    }

    /// Who keeps pods from connecting, if anybody does; of no interest where the operator wants no rules of ours for it.
    fn forwarding(&mut self, uplink: &Uplink, own: &Lease) -> String {
        let devices: BTreeMap<Family, String> = self.backend.devices().into_iter().collect();
        let paths = self.config.pools.iter().filter(|(family, _)| self.policy.forward.is_on(*family));
        let paths = paths.filter_map(|(family, pool)| {
            let device = devices.get(&family).or(uplink.ways.get(family).map(|way| &way.interface))?;
            let subnet = own.subnets.get(family)?;
            Some((family, Paths::new(pool.network(), *subnet, pool.candidates(), device.clone())?))
        });
        let paths: PerFamily<Paths> = paths.collect();
        let complaint = self.lookout.complaint(&mut self.nft, &mut self.netlink, &paths);
        complaint.map_or_else(|error| error.to_string(), str::to_owned)
    }

    fn write_files(&mut self, uplink: &Uplink, own: &Lease, ready: bool) -> Result<(), String> {
        if self.withheld {
            self.files.remove_subnet()?;
            return Err("no pod is started until the store gives this node a subnet again".into());
        }
        let networks = self.config.networks();
        let env = SubnetEnv {
            networks: networks.iter().map(|(_, network)| *network).collect(),
            subnets: own.subnets.iter().map(|(_, subnet)| with_gateway(*subnet)).collect(),
            mtu: self.backend.mtu(uplink, &self.families()),
            ip_masq: self.policy.masquerade.is_on_at_all(),
        };
        self.files.write_subnet(&env)?;
        if ready { self.files.install_conflist() } else { Err("the conflist waits for the node to be ready".into()) }
    }

    fn families(&self) -> Vec<Family> {
        self.config.networks().families().collect()
    }
}

/// The subnet as the plugins read it: with the gateway, its first usable address.
fn with_gateway(subnet: IpNetwork) -> IpNetwork {
    let first = match subnet.network() {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() | 1).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() | 1).into()),
    };
    IpNetwork::new(first, subnet.prefix()).unwrap_or(subnet)
}

fn describe(lacking: &PerFamily<String>) -> String {
    lacking.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>().join("; ")
}

/// Both were tried, and either may have failed.
fn both(one: Result<(), String>, other: Result<(), String>) -> Result<(), String> {
    match (one, other) {
        (Err(one), Err(other)) => Err(format!("{one}; {other}")),
        (one, other) => one.and(other),
    }
}

/// The first few of many, for one line of text.
fn summary<T: Display>(items: &[T]) -> String {
    let shown: Vec<String> = items.iter().take(3).map(T::to_string).collect();
    match items.len().checked_sub(3).filter(|more| *more > 0) {
        Some(more) => format!("{} (and {more} more)", shown.join("; ")),
        None => shown.join("; "),
    }
}
