//! A Node object, as far as we look at it: a few hundred bytes of the ten thousand that it has.

use super::annotations::{Annotations, Names};
use crate::family::{Family, PerFamily};
use crate::lease::{Lease, Malformed, Subnets, parse_cidr};
use serde::Deserialize;

/// The condition by which a cluster knows whether a node's network is there.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// What flannel gives as the reason for its being there.
const REASON: &str = "FlannelIsUp";

/// A Node object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// The conditions of a Node object, which only the node itself looks at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
}

/// The part of a Pod object that names its node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
}

impl Node {
    pub(super) fn annotations(&self) -> &Annotations {
        const NONE: &Annotations = &Annotations::new();
        self.metadata.annotations.as_ref().unwrap_or(NONE)
    }

    /// The subnets that the cluster has given to this node's pods, of the families in use; empty while it has none.
    ///
    /// # Errors
    /// What cannot be read of them.
    pub(super) fn subnets(&self, families: &[Family]) -> Result<Subnets, Malformed> {
        let mut subnets = PerFamily::default();
        for cidr in self.cidrs() {
            let subnet = parse_cidr(cidr).map_err(|Malformed(why)| Malformed(format!("podCIDR {why}")))?;
            let family = Family::of(subnet.ip());
            if families.contains(&family) && subnets.set(family, subnet).is_some() {
                return Err(Malformed(format!("it has two podCIDRs of {family}")));
            }
        }
        Ok(subnets)
    }

    /// The newer field counts, as for flannel; API servers fill in both.
    fn cidrs(&self) -> impl Iterator<Item = &str> {
        let many = self.spec.pod_cidrs.as_deref().filter(|cidrs| !cidrs.is_empty());
        let one = self.spec.pod_cidr.as_deref().filter(|_| many.is_none());
        many.unwrap_or_default().iter().map(String::as_str).chain(one).filter(|cidr| !cidr.is_empty())
    }

    /// What this node holds. None: it takes no part, or has no subnet so far.
    ///
    /// # Errors
    /// It does take part, but nothing can be made of what it says.
    pub(super) fn lease(&self, names: &Names, families: &[Family]) -> Result<Option<Lease>, Malformed> {
        if !names.is_managed(self.annotations()) {
            return Ok(None);
        }
        let subnets = self.subnets(families)?;
        if subnets.is_empty() {
            return Ok(None);
        }
        let mut announcement = names.announcement(self.annotations())?;
        // What is left of a family that is no longer in use.
        announcement.endpoints = PerFamily::from_fn(|family| {
            families.contains(&family).then(|| announcement.endpoints.take(family)).flatten()
        });
        if announcement.endpoints.is_empty() {
            return Err(Malformed("it has no public address of a family in use".into()));
        }
        Ok(Some(Lease { subnets, announcement }))
    }
}

impl Conditions {
    /// The cluster knows from flannel that the network is there.
    pub(super) fn network_is_up(&self) -> bool {
        let up = |condition: &Condition| {
            condition.kind == NETWORK_UNAVAILABLE && condition.status == "False" && condition.reason == REASON
        };
        self.status.conditions.iter().flatten().any(up)
    }
}

/// The patch by which flannel tells that the network is there; `now` as RFC 3339 has it, in whole seconds.
pub(super) fn network_up(now: &str) -> serde_json::Value {
    serde_json::json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
        "reason": REASON,
        "message": "Flannel is running on this node",
    }]}})
}

/// An event that tells what keeps a node's network from being ready; `now` as in [`network_up`].
pub(super) fn event(node: &str, trouble: &str, now: &str) -> serde_json::Value {
    // What is longer is refused (ValidateEvent in pkg/apis/core/validation).
    let message: String = trouble.chars().take(1000).collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"generateName": format!("{node}."), "namespace": "default"},
        // The kubelet, too, names a node by its name where a uid belongs, and kubectl finds events by it.
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "type": "Warning", "reason": "NetworkNotReady", "message": message,
        "source": {"component": "flanneld-rs", "host": node},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

impl Pod {
    /// The node that the pod is on; none: it is on none yet.
    pub(super) fn node(self) -> Option<String> {
        Some(self.spec.node_name).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(spec: &str) -> Node {
        let text = format!(
            r#"{{"kind":"Node","metadata":{{"name":"n","resourceVersion":"7","uid":"u","annotations":{{
                "flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/public-ip":"10.0.0.1"}}}},
                "spec":{spec},"status":{{"capacity":{{"cpu":"2"}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn subnets_are_the_pod_cidrs_of_the_families_in_use() {
        let key = |spec: &str, families: &[Family]| {
            node(spec).subnets(families).map(|subnets| crate::lease::key(&subnets)).map_err(|Malformed(why)| why)
        };
        let both = Family::ALL.as_slice();
        for (spec, families, expected) in [
            (r#"{"podCIDR":"10.5.1.0/24"}"#, both, "10.5.1.0-24"),
            (r#"{"podCIDR":"10.5.1.0/24","podCIDRs":["10.5.1.0/24","fd00:5::/64"]}"#, both, "10.5.1.0-24&fd00:5::-64"),
            (r#"{"podCIDRs":["fd00:5::/64","10.5.1.7/24"]}"#, both, "10.5.1.0-24&fd00:5::-64"),
            (r#"{"podCIDRs":["10.5.1.0/24","fd00:5::/64"]}"#, &[Family::V6], "fd00:5::-64"),
            ("{}", both, ""),
            (r#"{"podCIDR":"","podCIDRs":null}"#, both, ""),
        ] {
            assert_eq!(key(spec, families).as_deref(), Ok(expected), "{spec}");
        }
        for spec in [
            r#"{"podCIDR":"10.5.1.0"}"#,
            r#"{"podCIDR":"0.0.0.0/0"}"#,
            r#"{"podCIDRs":["10.5.1.0/24","10.5.2.0/24"]}"#,
            r#"{"podCIDRs":["10.5.1.0/24","fish"]}"#,
        ] {
            assert!(key(spec, both).is_err(), "{spec}");
        }
    }

    #[test]
    fn a_node_without_subnet_or_mark_holds_nothing() {
        let names = Names::new("flannel.alpha.coreos.com").unwrap();
        assert!(node(r#"{"podCIDR":"10.5.1.0/24"}"#).lease(&names, &[Family::V4]).unwrap().is_some());
        assert_eq!(node("{}").lease(&names, &[Family::V4]), Ok(None));
        let other = Names::new("example.org").unwrap();
        assert_eq!(node(r#"{"podCIDR":"10.5.1.0/24"}"#).lease(&other, &[Family::V4]), Ok(None));
        assert!(node(r#"{"podCIDR":"fd00:5::/64"}"#).lease(&names, &[Family::V6]).is_err());
    }

    #[test]
    fn the_condition_is_flannels() {
        let text = network_up("2026-01-02T03:04:05Z").to_string();
        assert!(serde_json::from_str::<Conditions>(&text).unwrap().network_is_up());
        assert!(text.contains(r#""message":"Flannel is running on this node""#));
        let down = text.replace("False", "True");
        assert!(!serde_json::from_str::<Conditions>(&down).unwrap().network_is_up());
    }
}
