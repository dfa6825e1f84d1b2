//! `type: firewall`: accepts the forwarded traffic of pods, and keeps bridges apart (`ingressPolicy: same-bridge`). One
//! nftables table serves all networks; a pod is an element of its sets.
//!
//! The reference plugin writes iptables rules into a chain that it puts first in FORWARD. We write into nobody's chains: an
//! accept in a table of our own does not overrule a drop in another one (nft(8), "verdict statement").

use crate::attachments::{Attached, Attachments, Part};
use crate::check;
use crate::plugin::kernel_error;
use crate::shared_table::{self, Shared, from_pods, is_of, owner, to_pods};
use crate::status::{nftables, unavailable};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, NetworkConfig, Plugin, Sandbox};
use kernel::netlink::{LinkKind, Netlink};
use kernel::nft::{
    Action, Chain, ConntrackState, Element, Field, Hook, HookKind, HookPoint, Match, Rule, Set, Table, Value,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

/// Devices whose traffic may not come from another of them: as the device it comes in by, as the one it goes out by, and
/// both at once.
const BRIDGES: [(&str, &[Field]); 3] = [
    ("bridges-in", &[Field::InputDevice]),
    ("bridges-out", &[Field::OutputDevice]),
    ("same-bridge", &[Field::InputDevice, Field::OutputDevice]),
];

/// `type: firewall`
pub(crate) struct Firewall;

/// The table, without pods and bridges.
fn table() -> Table {
    let mut table = shared_table::table("cni-firewall");
    table.sets.extend(BRIDGES.map(|(name, key)| (name.into(), Set { key: key.to_vec(), ..Set::default() })));
    let rule = |matches: Vec<Match>, action, comment: &str| Rule { matches, action, comment: comment.into() };
    let inside = |set: &str| Match::SourceIn(set.into());
    let known = BTreeSet::from([ConntrackState::Established, ConntrackState::Related]);
    let apart = vec![inside("bridges-in"), inside("bridges-out")];
    let mut rules = vec![rule(apart, Action::Jump("isolation".into()), "from bridge to bridge")];
    for to_pod in to_pods() {
        rules.push(rule(vec![to_pod, Match::Conntrack(known.clone())], Action::Accept, "answers to pods"));
    }
    rules.extend(from_pods().map(|from_pod| rule(vec![from_pod], Action::Accept, "from pods")));
    let hook = Some(Hook::new(HookKind::Filter, HookPoint::Forward, 0));
    let isolation = vec![
        rule(vec![inside("same-bridge")], Action::Return, "stays on its bridge"),
        rule(Vec::new(), Action::Drop, "to another bridge"),
    ];
    table.chains = vec![
        Chain { name: "forward".into(), hook, rules },
        Chain { name: "isolation".into(), hook: None, rules: isolation },
    ];
    table
}

/// The table with what an attachment has in it.
pub(crate) fn of(record: &Attached) -> Option<Table> {
    if !record.accepted {
        return None;
    }
    let mut table = table();
    shared_table::insert_pod(&mut table, &record.owner(), &record.addresses);
    if let Some(bridge) = &record.isolated_bridge {
        for (set, element) in bridge_elements(bridge) {
            shared_table::insert(&mut table, set, [element]);
        }
    }
    Some(table)
}

fn record(
    config: &NetworkConfig,
    sandbox: &Sandbox,
    previous: &AddResult,
    isolated_bridge: Option<String>,
) -> Attached {
    let record = Attached::new(&config.name, sandbox, addresses(previous));
    Attached { accepted: true, isolated_bridge, ..record }
}

impl Plugin for Firewall {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let isolated = is_isolated(config)?;
        let Some(previous) = &config.prev_result else {
            return Err(config
                .field("prevResult")
                .invalid("missing: firewall comes after the plugins that it protects"));
        };
        let bridge = isolated.then(|| bridge_of(previous)).transpose()?;
        Attachments::of(config)?.publish(Part::Firewall, &record(config, sandbox, previous, bridge))?;
        Ok(previous.clone())
    }

    fn del(
        &self,
        id: &AttachmentId,
        _netns: Option<&Path>,
        _args: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        Attachments::of(config)?.withdraw(Part::Firewall, &config.name, id, &[table()])
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let isolated = is_isolated(config)?;
        let previous = config.prev_result.clone().unwrap_or_default();
        let bridge = isolated.then(|| bridge_of(&previous)).transpose()?;
        let wanted = record(config, sandbox, &previous, bridge);
        check::verdict(Attachments::of(config)?.differences(&wanted)?)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        let (mut shared, table) = (Shared::open().map_err(kernel_error)?, table());
        let owners: BTreeSet<String> = valid.iter().map(|id| owner(&config.name, id)).collect();
        // Its records go with those of the plugin that made the interface.
        Attachments::of(config)?.forget_others(&config.name, valid)?;
        shared.retain(&table, |found| !is_of(&config.name, found) || owners.contains(found)).map_err(kernel_error)?;
        // Bridges that are gone; one that comes back is put in by its first pod.
        let links = Netlink::open().and_then(|mut host| host.links()).map_err(kernel_error)?;
        let present: BTreeSet<Value> = links.iter().filter_map(|link| Value::device(&link.name)).collect();
        for (set, _) in BRIDGES {
            let found = shared.elements(&table, set).map_err(kernel_error)?;
            let stale: Vec<Element> =
                found.into_iter().filter(|element| !element.key.iter().all(|name| present.contains(name))).collect();
            shared.remove_elements(&table, set, &stale).map_err(kernel_error)?;
        }
        Ok(())
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        is_isolated(config).and_then(|_| nftables()).map_err(unavailable)
    }
}

/// Whether bridges are kept apart. What we would have to leave out is refused.
fn is_isolated(config: &NetworkConfig) -> Result<bool, CniError> {
    let unsupported = |text: &str| Err(CniError::new(Code::UnsupportedField, text));
    match config.field("backend").string()? {
        None | Some("iptables" | "nftables") => {}
        Some(_) => {
            return unsupported("backend: only iptables and nftables are known here (we use nftables for both)");
        }
    }
    if config.field("iptablesAdminChainName").string()?.is_some() {
        return unsupported(
            "iptablesAdminChainName: there are no iptables chains here; use an nftables table of your own",
        );
    }
    match config.field("ingressPolicy").string()? {
        None | Some("open") => Ok(false),
        Some("same-bridge") => Ok(true),
        Some(_) => Err(config.field("ingressPolicy").wanted("open or same-bridge")),
    }
}

fn addresses(previous: &AddResult) -> Vec<IpAddr> {
    previous.ips.iter().map(|ip| ip.address.ip()).collect()
}

/// The bridge that the plugins before us plugged the pod into.
fn bridge_of(previous: &AddResult) -> Result<String, CniError> {
    let mut host = Netlink::open().map_err(kernel_error)?;
    for interface in previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        // A name from outside that can be no device's is none's.
        if host.link(&interface.name).ok().flatten().is_some_and(|link| link.kind == LinkKind::Bridge) {
            return Ok(interface.name.clone());
        }
    }
    let text = "ingressPolicy: same-bridge needs a bridge in prevResult.interfaces, and there is none";
    Err(CniError::new(Code::InvalidConfig, text))
}

/// The elements of a bridge, each with the set it belongs to.
fn bridge_elements(bridge: &str) -> Vec<(&'static str, Element)> {
    let Some(name) = Value::device(bridge) else { return Vec::new() };
    BRIDGES.map(|(set, key)| (set, Element::entry(vec![name; key.len()], []))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_these() {
        let text = table().to_string();
        let (_, chains) = text.split_once("\tchain forward").unwrap();
        let wanted = " {
\t\ttype filter hook forward priority 0; policy accept;
\t\tiifname @bridges-in oifname @bridges-out jump isolation comment \"from bridge to bridge\"
\t\tip daddr @pods4 ct state established,related accept comment \"answers to pods\"
\t\tip6 daddr @pods6 ct state established,related accept comment \"answers to pods\"
\t\tip saddr @pods4 accept comment \"from pods\"
\t\tip6 saddr @pods6 accept comment \"from pods\"
\t}

\tchain isolation {
\t\tiifname . oifname @same-bridge return comment \"stays on its bridge\"
\t\tdrop comment \"to another bridge\"
\t}
}
";
        assert_eq!(chains, wanted);
    }
}
