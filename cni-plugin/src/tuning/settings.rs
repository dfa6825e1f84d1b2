//! What is to be set, from all the places where it may be asked for.

use cni_spec::{Arguments, CniError, Code, Field, NetworkConfig};
use ipam::regular_file::read_bounded;
use kernel::netlink::{Link, LinkChange};
use kernel::netns::Netns;
use kernel::{Mac, sysctl};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::path::Path;

/// Where an operator lists the sysctls that pods may set, one regular expression on each line.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// Longest such list, in bytes.
const LONGEST: usize = 1 << 20;

/// Smallest MTU of IPv4 (RFC 791), largest that the kernel takes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// Most sysctls.
const MOST: usize = 256;

/// Settings that are ready to be made; None is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// keys under `net`, with the interface's name filled in
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: Option<u32>,
    pub(super) promiscuous: Option<bool>,
    pub(super) all_multicast: Option<bool>,
    pub(super) transmit_queue: Option<u32>,
}

impl Settings {
    /// The configuration's own keys, over which go `CNI_ARGS MAC=`, then `args.cni`, then `runtimeConfig.mac`.
    pub(crate) fn parse(config: &NetworkConfig, args: &Arguments, ifname: &str) -> Result<Self, CniError> {
        let allowed = Allowlist::read(Path::new(ALLOWLIST))?;
        let mut settings = Settings::default();
        settings.take(|key| Ok(config.field(key)), &allowed, ifname)?;
        if let Some(mac) = args.get("MAC").filter(|mac| !mac.is_empty()) {
            let invalid = |error| CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS MAC: {error}"));
            settings.mac = Some(mac.parse().map_err(invalid)?);
        }
        let cni = config.field("args").field("cni")?;
        settings.take(|key| cni.field(key), &allowed, ifname)?;
        settings.mac = config.field("runtimeConfig").field("mac")?.parsed()?.or(settings.mac);
        Ok(settings)
    }

    /// Takes over what is set in one place.
    fn take<'a>(
        &mut self,
        field: impl Fn(&str) -> Result<Field<'a>, CniError>,
        allowed: &Allowlist,
        ifname: &str,
    ) -> Result<(), CniError> {
        self.sysctls.extend(for_interface(&checked(&field("sysctl")?, allowed)?, ifname));
        let mtu = field("mtu")?;
        if let Some(bytes) = mtu.number::<u32>()?.filter(|bytes| *bytes != 0) {
            self.mtu =
                Some(bytes).filter(|bytes| MTU.contains(bytes)).ok_or_else(|| mtu.wanted("68 to 65535")).map(Some)?;
        }
        self.mac = field("mac")?.parsed()?.or(self.mac);
        // "false" is how the reference plugin's configurations say nothing about it.
        self.promiscuous = field("promisc")?.bool()?.filter(|on| *on).or(self.promiscuous);
        self.all_multicast = field("allmulti")?.bool()?.or(self.all_multicast);
        self.transmit_queue = field("txQLen")?.number()?.or(self.transmit_queue);
        Ok(())
    }

    /// What changes of the interface, if anything.
    pub(crate) fn change(&self) -> Option<LinkChange> {
        let change = LinkChange {
            mac: self.mac,
            mtu: self.mtu,
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            transmit_queue: self.transmit_queue,
            ..LinkChange::default()
        };
        (change != LinkChange::default()).then_some(change)
    }

    /// What of an interface is not so.
    pub(super) fn differences(&self, link: &Link) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, wanted: Option<String>, is: String| {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
                found.push(format!("{} in the sandbox has {what} {is} instead of {wanted}", link.name));
            }
        };
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        compare("the address", self.mac.map(|mac| mac.to_string()), mac);
        compare("MTU", self.mtu.map(|mtu| mtu.to_string()), link.mtu.to_string());
        compare("promiscuous mode", self.promiscuous.map(|on| on.to_string()), link.promiscuous.to_string());
        compare("all-multicast mode", self.all_multicast.map(|on| on.to_string()), link.all_multicast.to_string());
        let queue = link.transmit_queue.to_string();
        compare("transmit queue length", self.transmit_queue.map(|length| length.to_string()), queue);
        found
    }
}

/// The entries of `sysctl`, in which `IFNAME` still stands for the interface.
pub(crate) fn sysctls(config: &NetworkConfig) -> Result<BTreeMap<String, String>, CniError> {
    let field = config.field("sysctl");
    if field.value().is_none() {
        return Ok(BTreeMap::new());
    }
    checked(&field, &Allowlist::read(Path::new(ALLOWLIST))?)
}

fn checked(sysctls: &Field<'_>, allowed: &Allowlist) -> Result<BTreeMap<String, String>, CniError> {
    if sysctls.object()?.is_some_and(|object| object.len() > MOST) {
        return Err(sysctls.invalid(format!("more than {MOST} entries")));
    }
    let mut found = BTreeMap::new();
    for (key, value) in sysctls.object()?.into_iter().flatten() {
        let value = Field::new(format!("{}.{key}", sysctls.path()), Some(value));
        allowed.check(key).map_err(|text| value.invalid(text))?;
        if !is_of_the_network(key) {
            return Err(value.invalid("invalid net sysctl key: only those under net/ belong to a sandbox"));
        }
        found.insert(key.clone(), value.string()?.unwrap_or_default().to_owned());
    }
    Ok(found)
}

/// The same for one interface.
pub(crate) fn for_interface(sysctls: &BTreeMap<String, String>, ifname: &str) -> BTreeMap<String, String> {
    let named = |key: &String| key.replace("IFNAME", &escaped(key, ifname));
    sysctls.iter().map(|(key, value)| (named(key), value.clone())).collect()
}

/// Sets them in a sandbox, with which they go.
pub(crate) fn set_in(netns: &Netns, sysctls: &BTreeMap<String, String>) -> kernel::Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let _inside = netns.enter()?;
    sysctls.iter().try_for_each(|(key, value)| sysctl::set(key, value))
}

/// Which of them have another value in a sandbox.
pub(crate) fn differences_in(netns: &Netns, sysctls: &BTreeMap<String, String>) -> kernel::Result<Vec<String>> {
    if sysctls.is_empty() {
        return Ok(Vec::new());
    }
    let (_inside, mut differences) = (netns.enter()?, Vec::new());
    for (key, value) in sysctls {
        match sysctl::get(key) {
            Ok(found) if found.split_whitespace().eq(value.split_whitespace()) => {}
            Ok(found) => differences.push(format!("sysctl {key} is {found:?}, not {value:?}")),
            Err(error) => differences.push(error.to_string()),
        }
    }
    Ok(differences)
}

/// The interface's name as a part of `key`: where dots separate, a dot in a name is written as a slash (sysctl(8)).
fn escaped(key: &str, ifname: &str) -> String {
    if key.contains('/') && !key.contains('.') { ifname.to_owned() } else { ifname.replace('.', "/") }
}

/// Whether a key is under /proc/sys/net, where a sandbox sees what is its own.
fn is_of_the_network(key: &str) -> bool {
    key.starts_with("net.") || key.starts_with("net/")
}

/// The sysctls that pods may set; all of them if there is no list.
struct Allowlist(Option<Vec<Regex>>);

impl Allowlist {
    fn read(path: &Path) -> Result<Self, CniError> {
        let failed = |text: String| CniError::new(Code::Io, format!("{}: {text}", path.display()));
        let Some((text, _)) = read_bounded(path, LONGEST).map_err(|error| failed(error.to_string()))? else {
            return Ok(Allowlist(None));
        };
        let text = String::from_utf8(text).map_err(|error| failed(error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let patterns = lines.map(|line| Regex::new(line).map_err(|error| failed(format!("{line:?}: {error}"))));
        Ok(Allowlist(Some(patterns.collect::<Result<_, _>>()?)))
    }

    fn check(&self, key: &str) -> Result<(), String> {
        match &self.0 {
            Some(patterns) if !patterns.iter().any(|pattern| pattern.is_match(key)) => {
                Err(format!("Sysctl {key} is not allowed: {ALLOWLIST} does not list it"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(config: Value, args: &[(&str, &str)]) -> Result<Settings, CniError> {
        let mut whole = json!({"cniVersion": "1.0.0", "name": "n", "type": "tuning"});
        for (key, value) in config.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let config = NetworkConfig::parse(whole.to_string().as_bytes()).unwrap();
        let args = args.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Settings::parse(&config, &args, "eth0.7")
    }

    #[test]
    fn later_places_go_over_earlier_ones() {
        let config = json!({
            "mac": "02:00:00:00:00:01", "mtu": 1400, "promisc": true, "txQLen": 5, "sysctl": {"net.core.somaxconn": "500"},
            "args": {"cni": {"mtu": 1300, "allmulti": true, "sysctl": {"net.core.somaxconn": "600"}}},
        });
        let settings = parsed(config.clone(), &[]).unwrap();
        assert_eq!((settings.mtu, settings.promiscuous, settings.all_multicast), (Some(1300), Some(true), Some(true)));
        assert_eq!((settings.transmit_queue, settings.sysctls["net.core.somaxconn"].as_str()), (Some(5), "600"));
        let mac = |config, args: &[(&str, &str)]| parsed(config, args).unwrap().mac.unwrap().to_string();
        assert_eq!(mac(config.clone(), &[]), "02:00:00:00:00:01");
        assert_eq!(mac(config.clone(), &[("MAC", "02:00:00:00:00:02")]), "02:00:00:00:00:02");
        let mut with_capability = config;
        with_capability["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
        assert_eq!(mac(with_capability, &[("MAC", "02:00:00:00:00:02")]), "02:00:00:00:00:03");
        assert_eq!(parsed(json!({"promisc": false}), &[]).unwrap().change(), None);
    }

    #[test]
    fn the_interface_is_filled_in_and_nothing_but_the_network_is_touched() {
        let settings = parsed(json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}), &[]).unwrap();
        assert_eq!(settings.sysctls.keys().collect::<Vec<_>>(), ["net.ipv4.conf.eth0/7.arp_filter"]);
        let settings = parsed(json!({"sysctl": {"net/ipv4/conf/IFNAME/arp_filter": "1"}}), &[]).unwrap();
        assert_eq!(settings.sysctls.keys().collect::<Vec<_>>(), ["net/ipv4/conf/eth0.7/arp_filter"]);
        for key in ["kernel.hostname", "vm/overcommit_memory", "network", "", "/net/x"] {
            let error = parsed(json!({"sysctl": {key: "1"}}), &[]).unwrap_err();
            assert!(error.msg.contains("invalid net sysctl key"), "{key}: {error}");
        }
        for wrong in [json!({"mtu": 67}), json!({"mac": "x"}), json!({"sysctl": {"net.x": 1}}), json!({"txQLen": -1})] {
            assert!(parsed(wrong.clone(), &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_that_is_there_decides() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allowlist.conf");
        assert!(Allowlist::read(&path).unwrap().check("net.anything").is_ok());
        std::fs::write(&path, "^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n").unwrap();
        let list = Allowlist::read(&path).unwrap();
        assert!(list.check("net.ipv4.conf.IFNAME.arp_filter").is_ok());
        assert!(list.check("net.core.somaxconn").unwrap_err().contains("is not allowed"));
        std::fs::write(&path, "").unwrap();
        assert!(Allowlist::read(&path).unwrap().check("net.core.somaxconn").is_err());
        std::fs::write(&path, "(").unwrap();
        assert!(Allowlist::read(&path).is_err());
    }
}
