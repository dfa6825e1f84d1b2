//! `macspoofchk`: a pod sends from its own hardware address only. One nftables table of the family `bridge` for all networks;
//! a pod is an element of each of its sets.

use crate::attachment;
use crate::attachments::Attached;
use crate::shared_table;
use kernel::Mac;
use kernel::nft::{Action, Chain, Element, Family, Field, Hook, HookKind, HookPoint, Match, Rule, Set, Table, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Ports of bridges that are watched.
const GUARDED: &str = "guarded";
/// The same, each with the address that may come in by it.
const OWN: &str = "own";

/// The table, without pods. At the priority of the reference plugin: ahead of everything else on the bridge (nft(8), dstnat
/// of the bridge family).
pub(crate) fn table() -> Table {
    let set = |key: &[Field]| Set { key: key.to_vec(), ..Set::default() };
    let spoofed = Rule {
        matches: vec![Match::SourceIn(GUARDED.into()), Match::SourceNotIn(OWN.into())],
        action: Action::Drop,
        comment: "not the pod's hardware address".into(),
    };
    Table {
        family: Family::Bridge,
        name: "cni-macspoof".into(),
        sets: BTreeMap::from([
            (GUARDED.into(), set(&[Field::InputDevice])),
            (OWN.into(), set(&[Field::InputDevice, Field::SourceMac])),
        ]),
        chains: vec![Chain {
            name: "prerouting".into(),
            hook: Some(Hook::new(HookKind::Filter, HookPoint::Prerouting, -300)),
            rules: vec![spoofed],
        }],
    }
}

/// The table with what an attachment has in it.
pub(crate) fn of(record: &Attached) -> Option<Table> {
    let mac: Mac = record.hardware_address.as_ref()?.parse().ok()?;
    let port = Value::device(&attachment::host_veth(&record.id()))?;
    let element = |key: &[Value]| BTreeSet::from([Element::entry(key, []).commented(record.owner())]);
    let mut table = table();
    shared_table::insert(&mut table, GUARDED, element(&[port]));
    shared_table::insert(&mut table, OWN, element(&[port, Value::Mac(mac)]));
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_these() {
        let text = "\
table bridge cni-macspoof {
\tset guarded {
\t\ttype ifname
\t}

\tset own {
\t\ttype ifname . ether_addr
\t}

\tchain prerouting {
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tiifname @guarded iifname . ether saddr != @own drop comment \"not the pod's hardware address\"
\t}
}
";
        assert_eq!(table().to_string(), text);
    }
}
