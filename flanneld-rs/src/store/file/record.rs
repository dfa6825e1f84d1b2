//! One lease as a file: the JSON of flannel's etcd value, with two members more, which flannel would ignore.

use super::directory::Stamp;
use crate::json::Object;
use crate::lease::{Announcement, Lease, Malformed, Subnets, parse_key};
use std::time::{Duration, SystemTime};

/// Longest node identity that is read.
const MAX_NODE_BYTES: usize = 256;

/// A lease file, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lease: Lease,
    /// identity of the node; none: written by hand
    pub(super) node: Option<String>,
    /// end of the lease, in full milliseconds; none: a reservation
    pub(super) expires: Option<SystemTime>,
}

impl Record {
    pub(super) fn parse(key: &str, text: &[u8]) -> Result<Self, Malformed> {
        let lease = Lease::parse(key, text)?;
        let wrong = |error: serde_json::Error| Malformed(error.to_string());
        let object: Object = serde_json::from_slice(text).map_err(wrong)?;
        let node: Option<String> = object.read("Node").map_err(wrong)?;
        if let Some(node) = node.as_ref().filter(|node| node.len() > MAX_NODE_BYTES) {
            return Err(Malformed(format!("Node has {} bytes, more than {MAX_NODE_BYTES}", node.len())));
        }
        let expires: Option<u64> = object.read("ExpiresMs").map_err(wrong)?;
        let moment = |ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        let expires = match expires {
            None => None,
            Some(ms) => Some(moment(ms).ok_or_else(|| Malformed(format!("ExpiresMs: {ms} is out of bounds")))?),
        };
        Ok(Self { lease, node, expires })
    }

    pub(super) fn text(&self) -> String {
        let mut members = self.lease.announcement.members();
        if let Some(node) = &self.node {
            members.push_str(&format!(",\"Node\":{}", serde_json::Value::from(node.as_str())));
        }
        if let Some(since_epoch) = self.expires.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            members.push_str(&format!(",\"ExpiresMs\":{}", since_epoch.as_millis()));
        }
        format!("{{{members}}}\n")
    }
}

/// A file in the lease directory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// name of the file
    pub(super) key: String,
    /// what is in it
    pub(super) record: Result<Record, Malformed>,
    /// time of the last change
    pub(super) modified: SystemTime,
    /// none: it could not be read
    pub(super) stamp: Option<Stamp>,
}

impl Entry {
    /// The subnets that must not be given to anybody else, and until when. A file of a good name without a good lease in it
    /// may be somebody's all the same: it counts as long as a lease of its age would.
    pub(super) fn claim(&self, ttl: Duration) -> Option<(Subnets, Announcement, Option<SystemTime>)> {
        match &self.record {
            Ok(record) => Some((record.lease.subnets, record.lease.announcement.clone(), record.expires)),
            Err(_) => {
                let end = self.modified.checked_add(ttl).unwrap_or(self.modified);
                Some((parse_key(&self.key).ok()?, Announcement::default(), Some(end)))
            }
        }
    }

    /// Its time is over.
    pub(super) fn has_expired(&self, ttl: Duration, now: SystemTime) -> bool {
        self.claim(ttl).is_some_and(|(_, _, end)| end.is_some_and(|end| end <= now))
    }

    /// An administrator's: without an end.
    pub(super) fn is_reservation(&self) -> bool {
        self.record.as_ref().is_ok_and(|record| record.expires.is_none())
    }

    pub(super) fn node(&self) -> Option<&str> {
        self.record.as_ref().ok()?.node.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text() {
        let value = br#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
        let lease = Lease::parse("10.5.52.0-24", value).unwrap();
        let expires = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234));
        let record = Record { lease, node: Some("a \"node\"".into()), expires };
        let text = record.text();
        assert_eq!(
            text,
            "{\"PublicIP\":\"192.168.0.1\",\"PublicIPv6\":null,\"BackendType\":\"host-gw\",\"Node\":\"a \\\"node\\\"\",\"ExpiresMs\":1234}\n"
        );
        assert_eq!(Record::parse("10.5.52.0-24", text.as_bytes()), Ok(record));
        for hostile in [r#""ExpiresMs":-1"#, r#""ExpiresMs":"x""#, r#""Node":7"#, r#""ExpiresMs":1e400"#] {
            let text = format!(r#"{{"PublicIP":"192.168.0.1",{hostile}}}"#);
            assert!(Record::parse("10.5.52.0-24", text.as_bytes()).is_err(), "{text}");
        }
    }
}
