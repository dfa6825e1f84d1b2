//! Forwarding of packets, without which a node is an island to its pods: switched on, and given back as it was found.
//!
//! The kernel changes more than the switch itself: `ip_forward` sets the `forwarding` of every device and switches
//! `accept_redirects` of all of them off (`inet_forward_change`), and IPv6's sets every device's too
//! (`addrconf_fixup_forwarding`). All of it is written down before the first change. A value that somebody else has changed
//! since stays as it is.
//!
//! A node that forwards IPv6 hears no router advertisements any more, which may be where it has its own way out from
//! ([`kernel::advertisements`]). Devices on which it hears them, or may just not have heard them yet, go on doing so, as long
//! as forwarding is on by us.

use crate::family::Family;
use ipam::own_file::{left_of, replace};
use ipam::regular_file::read_bounded;
use kernel::netlink::{Link, LinkKind, Netlink};
use kernel::netns::Netns;
use kernel::{advertisements, sysctl};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the file in the state directory.
const FILE: &str = "ip-forward.json";
/// More than the values of ten thousand devices.
const MAX_BYTES: usize = 4 << 20;
/// What a pod's end in this namespace is called by who made it (cni-plugin's alias on veths).
const POD_ALIAS: &str = "cni-plugin:";

/// The switch of each family.
#[derive(Clone, Debug, Default)]
pub struct IpForward {
    /// where the first values are kept; none: nowhere
    file: Option<PathBuf>,
}

/// The first values, of one boot and one network namespace: the kernel forgets its own with these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    place: String,
    /// by switch: the values that it changes
    switches: BTreeMap<String, BTreeMap<String, Value>>,
    /// devices that were told to go on hearing routers
    #[serde(default)]
    hearing: BTreeSet<String>,
}

/// One parameter of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    /// before the first change
    first: String,
    /// what the change makes of it
    ours: String,
}

/// A parameter that is to be set back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// its name
    pub key: String,
    /// the value that it gets
    pub value: String,
}

/// What giving back takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Return {
    /// in this order: each switch first, then what it takes with it and should not
    pub settings: Vec<Setting>,
    /// switches that stay, and why
    pub kept: Vec<(String, String)>,
    /// some of them stay for now only: the record is still needed
    pub waits: bool,
}

impl IpForward {
    /// With its record in `state_dir`.
    pub fn recorded_in(state_dir: &Path) -> Self {
        IpForward { file: Some(state_dir.join(FILE)) }
    }

    /// What there is of the record on disk.
    pub fn written(&self) -> Vec<PathBuf> {
        self.file.as_deref().map(left_of).unwrap_or_default()
    }

    /// Switches forwarding of a family on, if it is off, and keeps the node hearing its routers, where it has no way out of its
    /// own also on the devices `uplinks`. Neither a record that cannot be used nor a device that cannot be told to go on hearing
    /// is a reason to leave it off. Returns what people should know of it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn switch_on(&self, family: Family, uplinks: &BTreeSet<&str>) -> Result<Option<String>, String> {
        let switch = switch(family);
        let is_on = sysctl::get(switch).is_ok_and(|value| value == "1");
        // What is not going to be changed ends nothing, and must not be given back.
        let writable = sysctl::settable(switch, "1").is_ok();
        let mut told = Vec::new();
        let mut deaf = BTreeSet::new();
        if family == Family::V6 && writable {
            match self.going_deaf(is_on, uplinks) {
                Ok(devices) => deaf = devices,
                Err(error) => told.push(format!("it is not known where this node hears IPv6 routers: {error}")),
            }
        }
        if writable
            && (!is_on || !deaf.is_empty())
            && let Err(error) = self.record(family, &deaf)
        {
            told.push(format!("{switch} is 1 now, and uninstall will not know what it was: {error}"));
        }
        // First, for the kernel forgets what it knows from routers with the switch.
        for device in deaf {
            let key = advertisements::accept_ra(&device);
            match set_if_writable(&key, advertisements::ALWAYS) {
                Ok(None) => tracing::info!("{device} goes on hearing IPv6 routers: {key} is 2 now"),
                Ok(Some(left)) => told.push(left),
                Err(error) => told.push(error.to_string()),
            }
        }
        if !is_on {
            match set_if_writable(switch, "1").map_err(|error| error.to_string())? {
                None => tracing::info!("{family} forwarding: {switch} is 1 now"),
                Some(left) => told.push(left),
            }
        }
        Ok(Some(told.join("; ")).filter(|told| !told.is_empty()))
    }

    /// The devices that hear routers, and do so no more once the node forwards by us.
    fn going_deaf(&self, is_on: bool, uplinks: &BTreeSet<&str>) -> Result<BTreeSet<String>, String> {
        let mut devices = BTreeSet::new();
        if is_on {
            // Where somebody else has switched it on, it is as he would have it.
            let record = self.record_of_now()?.filter(|record| record.switches.contains_key(switch(Family::V6)));
            devices.extend(record.into_iter().flat_map(|record| record.hearing));
        } else {
            let heard = Netlink::open().and_then(|mut netlink| advertisements::heard(&mut netlink));
            let heard = heard.map_err(|error| error.to_string())?;
            if !heard.has_own_way_out {
                // Early after a boot routers may not have spoken yet.
                devices.extend(uplinks.iter().map(|&device| device.to_owned()));
            }
            devices.extend(heard.on);
        }
        devices.retain(|device| advertisements::end_with_forwarding(device));
        Ok(devices)
    }

    /// Writes down what is about to change, if it is not written yet: of several times, the first one counts.
    fn record(&self, family: Family, hearing: &BTreeSet<String>) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let before = self.record_of_now()?;
        let mut record = before.clone().unwrap_or(Record { place: place()?, ..Record::default() });
        record.switches.entry(switch(family).into()).or_insert_with(|| about_to_change(family));
        record.hearing.extend(hearing.iter().cloned());
        if before.as_ref() == Some(&record) { Ok(()) } else { write(file, &record) }
    }

    /// The record, if it is of this boot and namespace.
    fn record_of_now(&self) -> Result<Option<Record>, String> {
        let record = self.file.as_deref().map(read).transpose()?.flatten();
        let Some(record) = record else { return Ok(None) };
        Ok(if record.place == place()? { Some(record) } else { None })
    }

    /// What there is to be given back now. Nothing, after a reboot: the kernel has its own first values again.
    ///
    /// # Errors
    /// Record or kernel cannot be read.
    pub fn to_return(&self) -> Result<Return, String> {
        let Some(record) = self.record_of_now()? else { return Ok(Return::default()) };
        let user = a_user()?;
        let mut all = Return::default();
        for (switch, values) in &record.switches {
            match values.get(switch) {
                Some(own) if sysctl::get(switch).is_ok_and(|now| now == own.ours) => {
                    if let Some(user) = &user {
                        let reason = format!(
                            "{user} leads to a pod, a machine or a network that may need it; run this again without"
                        );
                        all.kept.push((switch.clone(), reason));
                        all.waits = true;
                        continue;
                    }
                    let now = |key: &str| sysctl::get(key).ok();
                    all.settings.extend(settings(switch, values, now));
                }
                _ => all.kept.push((switch.clone(), "somebody else has changed it since".into())),
            }
        }
        if !all.waits {
            let keys = record.hearing.iter().map(|device| advertisements::accept_ra(device));
            let ours = keys.filter(|key| sysctl::get(key).is_ok_and(|now| now == advertisements::ALWAYS));
            let first = advertisements::UNLESS_FORWARDING;
            all.settings.extend(ours.map(|key| Setting { key, value: first.into() }));
        }
        Ok(all)
    }
}

/// The switch, then everything that must not keep what the kernel makes of it then.
fn settings(
    switch: &str,
    values: &BTreeMap<String, Value>,
    now: impl Fn(&str) -> Option<String>,
) -> impl Iterator<Item = Setting> {
    let own = values.get(switch).map(|own| Setting { key: switch.into(), value: own.first.clone() });
    let others = values.iter().filter(|(key, _)| *key != switch).filter_map(|(key, value)| {
        // A device that is no more has no values either.
        let now = now(key)?;
        let value = if now == value.ours { value.first.clone() } else { now };
        Some(Setting { key: key.clone(), value })
    });
    let mut all: Vec<Setting> = own.into_iter().collect();
    all.extend(others);
    all.into_iter()
}

/// Sets a sysctl. In a container /proc/sys can only be read: nothing has failed then, for the plugins, which run outside, set
/// what pods need; but it is told what is missing.
pub(crate) fn set_if_writable(key: &str, value: &str) -> kernel::Result<Option<String>> {
    match sysctl::set(key, value) {
        Err(error) if error.errno == Errno::EROFS => {
            Ok(Some(format!("{key} is not {value}, and /proc/sys is read-only here: set it on the node (sysctl.d)")))
        }
        outcome => outcome.map(|()| None),
    }
}

/// The parameter of the whole namespace.
fn switch(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

/// Everything that switching on sets, with what it is now.
fn about_to_change(family: Family) -> BTreeMap<String, Value> {
    let base = match family {
        Family::V4 => "net/ipv4/conf",
        Family::V6 => "net/ipv6/conf",
    };
    let devices = sysctl::names(base);
    let keys = devices.iter().map(|device| (format!("{base}/{device}/forwarding"), "1"));
    let redirects = (family == Family::V4).then(|| (format!("{base}/all/accept_redirects"), "0"));
    let value = |(key, ours): (String, &str)| {
        let first = sysctl::get(&key).ok()?;
        Some((key, Value { first, ours: ours.into() }))
    };
    [(switch(family).to_owned(), "1")].into_iter().chain(keys).chain(redirects).filter_map(value).collect()
}

/// The name of a device by which pods, containers, virtual machines or other networks are reached, if there is one: they may
/// rely on forwarding, whoever switched it on.
fn a_user() -> Result<Option<String>, String> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).map_err(|error| error.to_string())?;
    let uses = |link: &Link| match &link.kind {
        LinkKind::Veth => link.master.is_some() || link.alias.starts_with(POD_ALIAS),
        LinkKind::Tun | LinkKind::WireGuard => link.alias != kernel::LINK_ALIAS,
        LinkKind::Other(kind) => kind == "tap",
        _ => false,
    };
    Ok(links.into_iter().find(uses).map(|link| link.name))
}

fn place() -> Result<String, String> {
    let boot = sysctl::get("kernel/random/boot_id").map_err(|error| error.to_string())?;
    Ok(format!("{boot}.{}", Netns::current_name().map_err(|error| error.to_string())?))
}

/// One that is damaged says nothing of use.
fn read(path: &Path) -> Result<Option<Record>, String> {
    let found = read_bounded(path, MAX_BYTES).map_err(|error| format!("reading {}: {error}", path.display()))?;
    let unusable = |error: &serde_json::Error| tracing::warn!("{} is not used: {error}", path.display());
    Ok(found.and_then(|(text, _)| serde_json::from_slice(&text).inspect_err(unusable).ok()))
}

/// On disk before anything is changed.
fn write(path: &Path, record: &Record) -> Result<(), String> {
    let written = replace(path, 0o600, |out| Ok(serde_json::to_writer(out, record)?));
    written.map_err(|error| format!("writing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_goes_first_and_what_somebody_has_changed_since_stays() {
        let value = |first: &str, ours: &str| Value { first: first.into(), ours: ours.into() };
        let values: BTreeMap<String, Value> = [
            ("all/accept_redirects".to_owned(), value("0", "0")),
            ("eth0/forwarding".to_owned(), value("1", "1")),
            ("eth1/forwarding".to_owned(), value("0", "1")),
            ("gone/forwarding".to_owned(), value("0", "1")),
            ("switch".to_owned(), value("0", "1")),
        ]
        .into();
        let now = |key: &str| match key {
            "gone/forwarding" => None,
            // Switched off by somebody, and he meant it.
            "eth1/forwarding" | "all/accept_redirects" => Some("0".into()),
            _ => Some("1".into()),
        };
        let settings: Vec<(String, String)> =
            settings("switch", &values, now).map(|setting| (setting.key, setting.value)).collect();
        let expected =
            [("switch", "0"), ("all/accept_redirects", "0"), ("eth0/forwarding", "1"), ("eth1/forwarding", "0")];
        assert_eq!(settings, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn forwarding_is_given_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        Netns::create().unwrap().run(|| on_and_off(directory.path())).unwrap();
    }

    fn on_and_off(directory: &Path) {
        let picture = || {
            let conf = |family| about_to_change(family).into_iter().map(|(key, value)| (key, value.first));
            Family::ALL.into_iter().flat_map(conf).collect::<BTreeMap<String, String>>()
        };
        let set = |key: &str, value: &str| sysctl::set(key, value).unwrap();
        // A device that forwards on its own, and redirects that are not taken: no defaults, so that both can be lost.
        set("net/ipv4/conf/lo/forwarding", "1");
        set("net/ipv4/conf/all/accept_redirects", "0");
        let before = picture();
        let (ip_forward, none) = (IpForward::recorded_in(directory), BTreeSet::new());
        for family in Family::ALL {
            assert_eq!(ip_forward.switch_on(family, &none), Ok(None));
        }
        assert!(picture().iter().filter(|(key, _)| key.ends_with("forwarding")).all(|(_, value)| value == "1"));
        // Switched off behind our back, and on again: what it was first counts.
        set("net/ipv4/ip_forward", "0");
        ip_forward.switch_on(Family::V4, &none).unwrap();
        for setting in ip_forward.to_return().unwrap().settings {
            set(&setting.key, &setting.value);
        }
        assert_eq!(picture(), before);
        // What is off already was switched off by somebody.
        let kept = ip_forward.to_return().unwrap();
        assert_eq!((kept.settings.len(), kept.kept.len()), (0, 2), "{kept:?}");
        // In another namespace, as after a reboot, the record says nothing.
        Netns::create().unwrap().run(|| assert_eq!(ip_forward.to_return().unwrap(), Return::default())).unwrap();
    }

    #[test]
    fn without_a_place_for_the_record_it_is_switched_on_all_the_same() {
        Netns::create()
            .unwrap()
            .run(|| {
                let (ip_forward, none) = (IpForward::recorded_in(Path::new("/proc/no-such")), BTreeSet::new());
                let told = ip_forward.switch_on(Family::V4, &none).unwrap().unwrap();
                assert!(told.contains("/proc/no-such"), "{told}");
                assert_eq!(sysctl::get("net/ipv4/ip_forward").unwrap(), "1");
                assert_eq!(ip_forward.switch_on(Family::V4, &none), Ok(None));
            })
            .unwrap();
    }
}
