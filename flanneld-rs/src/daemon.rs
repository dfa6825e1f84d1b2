//! The daemon: puts the parts together, and waits for whatever wakes the next pass.

use crate::backend::{Backend, Means};
use crate::checksum::KernelRelease;
use crate::config_file::ConfigFile;
use crate::extension::{self, CommandLine, Commands};
use crate::family::PerFamily;
use crate::files::Files;
use crate::firewall::Policy;
use crate::health::{Condition, Health};
use crate::ip_forward::IpForward;
use crate::keeper::Keeper;
use crate::last_known::{self, Place};
use crate::lease::{Announcement, Lease, LeaseTable};
use crate::network_config::{self, NetworkConfig};
use crate::options::Options;
use crate::pace::Pace;
use crate::reconcile::{Reconciler, Source};
use crate::reload::{self, Grounds, Reload};
use crate::report;
use crate::running;
use crate::store::{Contact, LeaseStore, Snapshot, Store};
use crate::uplink::Choice;
use crate::wireguard::{Identity, Tunnels};
use cni_plugin::attachments::Attachments;
use cni_plugin::host_ports::HostPorts;
use ipam::subnet_env::SubnetEnv;
use ipnetwork::IpNetwork;
use kernel::Mac;
use kernel::netlink::Netlink;
use kernel::watch::{Expected, Wake, Watch};
use kernel::wireguard::WireGuard;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// After a failed pass the next one comes this soon, whatever the resync period.
const RETRY: Duration = Duration::from_secs(1);

/// The node is looked at so often at least: it costs little, and who is silent for longer counts as stuck at `/healthz`.
const RAREST: Duration = Duration::from_secs(30);

/// Between two attempts of the command before the lease.
const COMMAND_RETRY: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT, which leave everything in place.
///
/// # Errors
/// One line: what cannot be mended by trying again.
pub async fn run(options: Options) -> Result<(), String> {
    let mut signals = Signals::open()?;
    let last_command = OnceLock::new();
    let Signals { hangup, terminate, interrupt } = &mut signals;
    tokio::select! {
        outcome = serve(&options, hangup, &last_command) => return outcome,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(command) = last_command.get() {
        extension::shutdown(command).await;
    }
    tracing::info!("ending; the data path stays as it is");
    Ok(())
}

/// `last_command` is filled in with what is to be run when the daemon is told to end.
async fn serve(options: &Options, hangups: &mut Signal, last_command: &OnceLock<CommandLine>) -> Result<(), String> {
    options.without_effect.remarks().iter().for_each(|remark| tracing::warn!("{remark}"));
    let health = Health::new();
    let choice = Choice::parse(options)?;
    preflight()?;
    let _running = running::tell(&options.state_dir);
    if options.healthz_port != 0 {
        let listener = Health::listen(SocketAddr::new(options.healthz_ip, options.healthz_port)).await?;
        tokio::spawn(health.clone().serve(listener));
    }
    let store = Arc::new(Store::of(options)?);
    let memory = Place::of(options, &store).await;
    let last = memory.as_ref().and_then(Place::read);
    let source = match options.net_config_file() {
        Some(path) => reload::Source::File(ConfigFile::at(path)),
        None => reload::Source::Store(store.clone()),
    };
    let at_start = source.at_start(last.as_ref(), &health).await?;
    let config = Arc::new(at_start.config.clone());
    let (mut reload, config_reader) = Reload::new(source, at_start, health.clone());
    let remembered = last.as_ref().and_then(|last| last.still_held(SystemTime::now()));
    let remembered = remembered.filter(|held| store.allows(&config, &held.lease.subnets)).cloned();
    let policy = Policy::from(options);
    let files = Files::of(options);
    let plugins = (HostPorts::recorded_in(&options.host_ports_dir), Attachments::recorded_in(&options.attachments_dir));
    let mut previous = previous_subnets(&files, &config);
    if previous == PerFamily::default() {
        // After a reboot.
        previous = last.as_ref().map(|last| last.own.lease.subnets).unwrap_or_default();
    }
    let (mut backend, tunnels) = backend(&config, options)?;
    if let Backend::Extension(extension) = &mut backend {
        if let Some(command) = &extension.commands.shutdown {
            // Nobody else fills it in.
            let _ = last_command.set(command.clone());
        }
        extension.data = first_command(&extension.commands, &health).await;
    }
    let reconciler = Reconciler::new(config.clone(), backend, choice.clone(), policy, files, plugins, health.clone());
    let mut reconciler = reconciler.map_err(|error| error.to_string())?;
    reconciler.tunnels = tunnels;
    reconciler.ip_forward = IpForward::recorded_in(&options.state_dir);
    let mut kernel_events = Watch::open().map_err(|error| error.to_string())?;

    let lease_watch = store.watch();
    let mut snapshots = lease_watch.receiver();
    let mut laid_down = PerFamily::default();
    if let Store::Kube(_) = *store {
        let before = last.as_ref().filter(|_| remembered.is_some()).map(|last| last.public);
        laid_down = hear(&mut snapshots, before, &health).await;
        reconciler.choice = choice.reached_by(laid_down);
    }
    let announcement = loop {
        match reconciler.announcement() {
            Some(announcement) => break announcement,
            None => {
                health.beat();
                let _ = timeout(RETRY, news(&mut kernel_events, None)).await;
            }
        }
    };
    let node = identity(options, &announcement)?;
    let (announce, announced) = watch::channel(announcement);
    let (publish, mut own) = watch::channel(None);
    let keeper = Keeper {
        store: store.clone(),
        config: reload.in_force(),
        node,
        previous,
        remembered,
        margin: options.renew_margin(),
        announcement: announced,
        snapshots: snapshots.clone(),
        health: health.clone(),
    };
    let (config, held, mut heard) = (reload.in_force(), own.clone(), snapshots.clone());
    let mut record = std::pin::pin!(async {
        let mut memory = memory;
        while memory.is_none() {
            // Credentials that came after the start.
            let _ = heard.wait_for(|snapshot| snapshot.contact == Contact::Live).await;
            memory = Place::of(options, &store).await;
            if memory.is_none() {
                sleep(30 * RETRY).await;
            }
        }
        if let Some(place) = memory {
            last_known::record(place, config, held, heard, health.clone()).await;
        }
    });
    let mut remembered = last.map(|last| last.leases);
    let mut report = std::pin::pin!(report::run(&store, &health));
    let mut keeper = std::pin::pin!(keeper.run(publish));
    let mut config_reader = std::pin::pin!(config_reader.run(hangups));
    let resync = Duration::from_secs(options.iptables_resync).min(RAREST);
    let mut told_service_manager = false;
    let mut pace = Pace::new(Instant::now());
    loop {
        let held = own.borrow_and_update().clone();
        if reconciler.withholds(held.as_ref().is_some_and(|held| held.lost)) {
            pace.wake(Wake::EVERYTHING);
        }
        let lease = held.map(|held| held.lease);
        let snapshot = snapshots.borrow_and_update().clone();
        let grounds = Grounds { own: lease.as_ref(), has_pools: store.has_pools(), leases: snapshot.leases.as_ref() };
        if let Some(config) = reload.take(grounds) {
            reconciler.reconfigure(Arc::new(config));
            pace.wake(Wake::EVERYTHING);
        }
        describe(&snapshot, &health);
        if snapshot.leases.is_some() && snapshot.given.public != laid_down {
            laid_down = snapshot.given.public;
            reconciler.choice = choice.reached_by(laid_down);
            pace.wake(Wake::EVERYTHING);
        }
        if snapshot.leases.is_some() {
            remembered = None;
        }
        let leases = snapshot.leases.clone().map(|leases| (leases, Source::Store));
        let leases = leases.or_else(|| Some((remembered.clone().filter(|_| snapshot.is_down())?, Source::Memory)));
        let wanted = lease.as_ref().zip(leases.as_ref());
        if leases.is_some() {
            health.set(Condition::Peers, Ok(()));
        }
        let started = Instant::now();
        if let Some(wake) = pace.take(started) {
            let good = pass(&mut reconciler, &announce, &store, wanted, wake);
            pace.done(started, Instant::now(), good, if good { resync } else { RETRY });
        } else if !follow(&mut reconciler, wanted) {
            pace.wake(Wake::EVERYTHING);
        }
        health.beat();
        if !told_service_manager && health.ready().is_ok() {
            tracing::info!("ready");
            crate::service_manager::ready();
            told_service_manager = true;
        }
        tokio::select! {
            error = &mut keeper => return Err(error.to_string()),
            () = &mut record => {}
            () = &mut config_reader => {}
            () = &mut report => {}
            () = reload.offered() => {}
            _ = own.changed() => {}
            _ = snapshots.changed() => {}
            () = sleep_until(pace.next()) => {}
            wake = news(&mut kernel_events, reconciler.expected()) => pace.wake(wake),
        }
    }
}

/// The addresses by which others shall reach this node, where the cluster may have laid them down: heard of before anything is
/// published, or else, where the cluster does not answer at once, those of `before`, with which the node has served.
async fn hear(
    snapshots: &mut watch::Receiver<Snapshot>,
    before: Option<PerFamily<std::net::IpAddr>>,
    health: &Health,
) -> PerFamily<std::net::IpAddr> {
    loop {
        let enough = |snapshot: &Snapshot| snapshot.leases.is_some() || (before.is_some() && snapshot.is_down());
        if let Ok(Ok(snapshot)) = timeout(RETRY, snapshots.wait_for(enough)).await
            && snapshot.leases.is_some()
        {
            return snapshot.given.public;
        }
        if let Some(before) = before {
            return before;
        }
        if let Contact::Down { why, .. } = &snapshots.borrow().contact {
            health.set(Condition::Lease, Err(format!("waiting for a subnet lease: {why}")));
        }
        health.beat();
    }
}

/// Takes in changes of leases alone. False: a look at the whole is needed.
fn follow(reconciler: &mut Reconciler, wanted: Option<(&Lease, &(Arc<LeaseTable>, Source))>) -> bool {
    match wanted {
        Some((own, (leases, source))) => reconciler.follow(own, leases, *source).unwrap_or(false),
        // Nothing to want so far.
        None => true,
    }
}

fn pass(
    reconciler: &mut Reconciler,
    announce: &watch::Sender<Announcement>,
    store: &Store,
    wanted: Option<(&Lease, &(Arc<LeaseTable>, Source))>,
    wake: Wake,
) -> bool {
    let plugins = reconciler.plugins();
    let announcement = reconciler.announcement();
    let changed = announce.send_if_modified(|present| match announcement {
        Some(announcement) if announcement != *present => {
            *present = announcement;
            true
        }
        _ => false,
    });
    if changed {
        store.moved();
    }
    // Without a lease there is nothing to want; what a predecessor programmed stays.
    let Some((own, (leases, source))) = wanted else { return false };
    reconciler.pass(own, leases, *source, wake) && plugins
}

/// Notes what is to be said of the store.
fn describe(snapshot: &Snapshot, health: &Health) {
    health.note(
        "lease store",
        match &snapshot.contact {
            Contact::Down { why, .. } => format!("out of reach, the last known leases stay in force: {why}"),
            _ => String::new(),
        },
    );
    let skipped: Vec<String> = snapshot.skipped.iter().map(|(key, why)| format!("{key}: {why}")).collect();
    health.note("entries that are no leases", skipped.join("; "));
}

/// Waits until the kernel tells of something that is not as `expected`.
async fn news(kernel_events: &mut Watch, expected: Option<Expected<'_>>) -> Wake {
    let news = match &expected {
        Some(expected) => kernel_events.deviated(expected).await,
        None => kernel_events.changed().await,
    };
    match news {
        Ok(wake) => wake,
        Err(error) => {
            tracing::warn!("kernel notifications: {error}");
            sleep(RETRY).await;
            Wake::EVERYTHING
        }
    }
}

/// Fails early, before a lease is taken, if this process may not program the kernel at all.
fn preflight() -> Result<(), String> {
    match kernel::may_configure_network() {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.errno, Errno::EPERM | Errno::EACCES) => {
            Err(format!("{error}: flanneld-rs needs CAP_NET_ADMIN"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the command that comes before the lease, until it succeeds.
async fn first_command(commands: &Commands, health: &Health) -> Option<String> {
    loop {
        match extension::pre_startup(commands).await {
            Ok(data) => return data,
            Err(error) => health.set(Condition::Lease, Err(error)),
        }
        health.beat();
        sleep(COMMAND_RETRY).await;
    }
}

/// The backend, with the addresses of tunnel devices that a predecessor, ours or Go flannel, has left in use.
fn backend(config: &NetworkConfig, options: &Options) -> Result<(Backend, Option<Tunnels>), String> {
    if matches!(config.backend, network_config::Backend::WireGuard(_)) {
        return wireguard(config, options).map(|(backend, tunnels)| (backend, Some(tunnels)));
    }
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    let means = Means { tx_checksum: options.tx_checksum, kernel: KernelRelease::running(), ..Means::default() };
    let fresh = Backend::new(config, means)?;
    let mut macs = PerFamily::default();
    for (family, device) in fresh.devices() {
        if let Some(mac) = netlink.link(&device).map_err(|error| error.to_string())?.and_then(|link| link.mac) {
            macs.set(family, mac);
        }
    }
    if macs == PerFamily::<Mac>::default() {
        return Ok((fresh, None));
    }
    Ok((Backend::new(config, Means { macs, ..means })?, None))
}

/// The WireGuard backend, with this node's key and with whoever carries the packets.
fn wireguard(config: &NetworkConfig, options: &Options) -> Result<(Backend, Tunnels), String> {
    let identity = Identity::of_node(options.wireguard_key_file.as_deref(), &options.state_dir)?;
    let kernel = WireGuard::open().map_err(|error| error.to_string())?;
    let carrier = if kernel.is_some() { "the kernel" } else { "this process (the kernel has no WireGuard)" };
    tracing::info!("WireGuard by {carrier}, public key {}", identity.public_key);
    let means = Means { wireguard: Some((identity.public_key, kernel.is_some())), ..Means::default() };
    let backend = Backend::new(config, means)?;
    let ports = if let Backend::WireGuard(wireguard) = &backend { wireguard.ports() } else { BTreeMap::new() };
    Ok((backend, Tunnels::new(identity, ports, kernel)))
}

/// The subnets of this node's last life, if they were of this network.
fn previous_subnets(files: &Files, config: &NetworkConfig) -> PerFamily<IpNetwork> {
    let Ok(env) = SubnetEnv::read(&files.subnet_file) else { return PerFamily::default() };
    let networks = config.networks();
    let of_network = |subnet: &IpNetwork| {
        networks.get(crate::family::Family::of(subnet.ip())).is_some_and(|network| network.contains(subnet.ip()))
    };
    env.subnets()
        .filter(of_network)
        .filter_map(|subnet| {
            let network = IpNetwork::new(subnet.network(), subnet.prefix()).ok()?;
            Some((crate::family::Family::of(subnet.ip()), network))
        })
        .collect()
}

/// The identity under which the store knows this node: the name it was given, or else host name and address, since several
/// daemons may share one machine and its name.
fn identity(options: &Options, announcement: &Announcement) -> Result<String, String> {
    if let Some(name) = &options.node_name {
        return Ok(name.clone());
    }
    let host = nix::unistd::gethostname()
        .map_err(|errno| format!("reading the host name: {errno}; give this node a name with --node-name"))?;
    let address = announcement.public_ip().map(|address| address.to_string()).unwrap_or_default();
    Ok(format!("{}/{address}", host.to_string_lossy()))
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn open() -> Result<Self, String> {
        let open = |kind| signal(kind).map_err(|error| format!("listening for signals: {error}"));
        Ok(Signals {
            hangup: open(SignalKind::hangup())?,
            terminate: open(SignalKind::terminate())?,
            interrupt: open(SignalKind::interrupt())?,
        })
    }
}
