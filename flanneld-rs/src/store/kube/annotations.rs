//! What a node says of itself in the annotations of its Node object, to the byte as Go flannel writes it
//! (`pkg/subnet/kube/annotations.go`, `AcquireLease` in `kube.go`): both implementations share one cluster.

use crate::family::{Family, PerFamily};
use crate::lease::{Announcement, Endpoint, Malformed};
use regex_lite::Regex;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The annotations of one Node object.
pub(super) type Annotations = BTreeMap<String, String>;

/// A patch of annotations: new values; none, in JSON null, deletes (as in every strategic merge patch).
pub(super) type Changes = BTreeMap<String, Option<String>>;

/// A domain, a slash and perhaps the beginning of a name: what flannel takes.
const PREFIX: &str = "(?:[a-z0-9_-]+\\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$";

/// The names of the annotations.
#[derive(Clone, Debug)]
pub(super) struct Names {
    managed: String,
    backend_type: String,
    families: PerFamily<FamilyNames>,
}

#[derive(Clone, Debug)]
struct FamilyNames {
    data: String,
    public: String,
    overwrite: String,
    node_public: String,
}

impl Names {
    /// From the value of `--kube-annotation-prefix`.
    ///
    /// # Errors
    /// The prefix is none that flannel would take.
    pub(super) fn new(prefix: &str) -> Result<Self, String> {
        let mut full = prefix.to_owned();
        let slashes = full.matches('/').count();
        if slashes == 0 {
            full.push('/');
        }
        if !full.ends_with(['/', '-']) {
            full.push('-');
        }
        if slashes > 1 || !Regex::new(PREFIX).is_ok_and(|pattern| pattern.is_match(&full)) {
            return Err(format!(
                "--kube-annotation-prefix {prefix:?}: must be a domain, such as flannel.alpha.coreos.com, and may have the \
                 beginning of a name after a slash"
            ));
        }
        let families = PerFamily::from_fn(|family| {
            let (data, public) = match family {
                Family::V4 => ("backend-data", "public-ip"),
                Family::V6 => ("backend-v6-data", "public-ipv6"),
            };
            Some(FamilyNames {
                data: format!("{full}{data}"),
                public: format!("{full}{public}"),
                overwrite: format!("{full}{public}-overwrite"),
                node_public: format!("{full}node-{public}"),
            })
        });
        Ok(Self {
            managed: format!("{full}kube-subnet-manager"),
            backend_type: format!("{full}backend-type"),
            families,
        })
    }

    /// The node takes part. flannel leaves all others alone, and so do we.
    pub(super) fn is_managed(&self, annotations: &Annotations) -> bool {
        annotations.get(&self.managed).is_some_and(|value| value == "true")
    }

    /// What a node says of itself. Each family stands for itself: what is missing or wrong of one leaves the other as it is.
    ///
    /// # Errors
    /// Of no family anything can be used, with the reasons.
    pub(super) fn announcement(&self, annotations: &Annotations) -> Result<Announcement, Malformed> {
        let backend_type = annotations.get(&self.backend_type).cloned().unwrap_or_default();
        let mut announcement = Announcement::of_type(backend_type)?;
        let mut wrong = Vec::new();
        for (family, names) in self.families.iter() {
            match names.endpoint(family, annotations) {
                Ok(Some(endpoint)) => drop(announcement.endpoints.set(family, endpoint)),
                Ok(None) => {}
                Err(Malformed(why)) => wrong.push(why),
            }
        }
        match wrong.is_empty() {
            _ if !announcement.endpoints.is_empty() => Ok(announcement),
            true => Err(Malformed("it has no public address".into())),
            false => Err(Malformed(wrong.join("; "))),
        }
    }

    /// The announcement that a node publishes: with the public addresses that an administrator has laid down, if any.
    pub(super) fn overwritten(&self, mut announcement: Announcement, annotations: &Annotations) -> Announcement {
        for (family, names) in self.families.iter() {
            let overwrite = address(family, annotations, &names.overwrite)
                .and_then(|address| address.map(|address| Endpoint::parse(address, None)).transpose());
            let overwrite = overwrite.unwrap_or_else(|Malformed(why)| {
                tracing::warn!("{why}; it is left out of account");
                None
            });
            if let (Some(overwrite), Some(endpoint)) = (overwrite, announcement.endpoints.get_mut(family)) {
                endpoint.public_ip = overwrite.public_ip;
            }
        }
        announcement
    }

    /// Addresses that an administrator has laid down for the node to choose its interface by: `--public-ip`, for one node.
    pub(super) fn laid_down(&self, annotations: &Annotations) -> PerFamily<IpAddr> {
        let laid_down = |family| {
            let names: &FamilyNames = self.families.get(family)?;
            address(family, annotations, &names.node_public).ok().flatten()
        };
        PerFamily::from_fn(laid_down)
    }

    /// The annotations that are not yet as `announcement` wants them, with their new values. None: to be deleted, since of a
    /// family in use that is not announced peers would otherwise go on with an address of the past. What is of a family not in
    /// use is not looked at by anybody, and is let be.
    pub(super) fn changes(&self, announcement: &Announcement, in_use: &[Family], present: &Annotations) -> Changes {
        let mut wanted = vec![
            (&self.managed, Some("true".to_owned())),
            (&self.backend_type, Some(announcement.backend_type.clone())),
        ];
        for (family, names) in self.families.iter() {
            let endpoint = announcement.endpoints.get(family);
            if endpoint.is_none() && !in_use.contains(&family) {
                continue;
            }
            let data = |endpoint: &Endpoint| endpoint.data.clone().unwrap_or_else(|| "null".into());
            wanted.push((&names.data, endpoint.map(data)));
            wanted.push((&names.public, endpoint.map(|endpoint| endpoint.public_ip.to_string())));
        }
        let differs = |(name, value): &(&String, Option<String>)| present.get(*name) != value.as_ref();
        wanted.into_iter().filter(differs).map(|(name, value)| (name.clone(), value)).collect()
    }
}

impl FamilyNames {
    fn endpoint(&self, family: Family, annotations: &Annotations) -> Result<Option<Endpoint>, Malformed> {
        let Some(public_ip) = address(family, annotations, &self.public)? else { return Ok(None) };
        let data = annotations.get(&self.data).map(String::as_str).filter(|text| !text.is_empty());
        let data: Option<&RawValue> = data
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| Malformed(format!("annotation {} is no JSON: {error}", self.data)))?;
        Endpoint::parse(public_ip, data).map(Some)
    }
}

/// The address in an annotation; none if it is absent or empty.
fn address(family: Family, annotations: &Annotations, name: &str) -> Result<Option<IpAddr>, Malformed> {
    let Some(text) = annotations.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse::<IpAddr>() {
        Ok(address) if Family::of(address) == family => Ok(Some(address).filter(|address| !address.is_unspecified())),
        _ => {
            let text: String = text.chars().take(80).collect();
            Err(Malformed(format!("annotation {name}: {text:?} is no {family} address")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = "flannel.alpha.coreos.com";

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| (format!("{FLANNEL}/{name}"), (*value).to_owned())).collect()
    }

    fn written(announcement: &Announcement, present: &Annotations) -> Annotations {
        let changes = names().changes(announcement, &Family::ALL, present);
        changes.into_iter().map(|(name, value)| (name, value.expect("nothing is deleted"))).collect()
    }

    fn names() -> Names {
        Names::new(FLANNEL).unwrap()
    }

    fn vxlan() -> Annotations {
        annotations(&[
            ("backend-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            ("backend-type", "vxlan"),
            ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}"#),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
            ("public-ipv6", "fd00::3"),
        ])
    }

    #[test]
    fn what_go_flannel_wrote_is_what_we_would_write() {
        let announcement = names().announcement(&vxlan()).unwrap();
        assert_eq!(written(&announcement, &Annotations::new()), vxlan());
        assert_eq!(written(&announcement, &vxlan()), Annotations::new());
        assert!(names().is_managed(&vxlan()) && !names().is_managed(&Annotations::new()));
        let host_gw = annotations(&[
            ("backend-data", "null"),
            ("backend-type", "host-gw"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
        ]);
        let announcement = names().announcement(&host_gw).unwrap();
        assert_eq!(written(&announcement, &Annotations::new()), host_gw);
    }

    #[test]
    fn prefixes_are_as_flannel_takes_them() {
        for (prefix, managed) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/kube-subnet-manager"),
            ("example.org/", "example.org/kube-subnet-manager"),
            ("example.org/second", "example.org/second-kube-subnet-manager"),
            ("example.org/second-", "example.org/second-kube-subnet-manager"),
        ] {
            assert_eq!(Names::new(prefix).unwrap().managed, managed);
        }
        for nonsense in ["", "flannel", "a.b/c/d", "example.org/Upper", "example.org/x y"] {
            assert!(Names::new(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn families_stand_for_themselves() {
        for (name, value) in [("public-ipv6", "nonsense"), ("public-ipv6", "10.0.0.1"), ("backend-v6-data", "{")] {
            let mut half = vxlan();
            half.extend(annotations(&[(name, value)]));
            let announcement = names().announcement(&half).unwrap();
            assert!(announcement.endpoints.v4.is_some() && announcement.endpoints.v6.is_none());
        }
        let nothing = annotations(&[("public-ip", "0.0.0.0"), ("public-ipv6", "x")]);
        assert!(names().announcement(&nothing).unwrap_err().0.contains("public-ipv6"));
    }

    #[test]
    fn what_is_no_longer_announced_is_deleted() {
        let mut own = names().announcement(&vxlan()).unwrap();
        own.endpoints.v6 = None;
        let mut present = vxlan();
        present.extend(annotations(&[("public-ipv6-overwrite", "fd00::7"), ("node-public-ipv6", "fd00::9")]));
        let deleted = ["backend-v6-data", "public-ipv6"].map(|name| (format!("{FLANNEL}/{name}"), None));
        assert_eq!(names().changes(&own, &Family::ALL, &present), deleted.into());
        assert_eq!(names().changes(&own, &[Family::V4], &present), Changes::new());
        present.retain(|name, _| !name.ends_with("/backend-v6-data") && !name.ends_with("/public-ipv6"));
        assert_eq!(names().changes(&own, &Family::ALL, &present), Changes::new());
    }

    #[test]
    fn an_administrator_lays_down_addresses() {
        let own = names().announcement(&vxlan()).unwrap();
        let mut present = vxlan();
        present.extend(annotations(&[("public-ip-overwrite", "203.0.113.7"), ("public-ipv6-overwrite", "nonsense")]));
        present.extend(annotations(&[("node-public-ip", "192.168.64.9"), ("node-public-ipv6", "")]));
        let published = names().overwritten(own, &present);
        assert_eq!(written(&published, &present), annotations(&[("public-ip", "203.0.113.7")]));
        assert_eq!(names().laid_down(&present).v4, "192.168.64.9".parse().ok());
        assert_eq!(names().laid_down(&present).v6, None);
    }
}
