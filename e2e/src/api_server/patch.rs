//! Patches: JSON merge patches (RFC 7396) and strategic merge patches, which differ where lists have keys.

use super::http::{Reply, Request};
use serde_json::{Map, Value};

/// How a patch is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// lists are replaced
    Merge,
    /// lists of objects with a key are merged by it
    Strategic,
}

/// The lists of a Node object that are merged, and by which member (`patchMergeKey` in its definition).
const KEYS: [(&str, &str); 3] = [("conditions", "type"), ("addresses", "type"), ("taints", "key")];

/// Reads the patch of a request.
pub(super) fn of(request: &Request) -> Result<(Kind, Value), Reply> {
    let kind = match request.header("content-type").unwrap_or_default() {
        "application/merge-patch+json" => Kind::Merge,
        "application/strategic-merge-patch+json" => Kind::Strategic,
        other => {
            return Err(Reply::error(415, "UnsupportedMediaType", &format!("the body of the request was {other}")));
        }
    };
    Ok((kind, request.json()?))
}

/// Applies a patch.
pub(super) fn apply(kind: Kind, target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(own) = target else { return };
    for (name, value) in members {
        let key = KEYS.iter().find(|(list, _)| list == name).map(|(_, key)| *key);
        match (value, key) {
            (Value::Null, _) => drop(own.remove(name)),
            (Value::Array(items), Some(key)) if kind == Kind::Strategic => {
                merge_list(own.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new())), items, key);
            }
            _ => apply(kind, own.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_list(target: &mut Value, items: &[Value], key: &str) {
    let mut own = target.as_array().cloned().unwrap_or_default();
    for item in items {
        match own.iter_mut().find(|present| present[key] == item[key]) {
            Some(present) => apply(Kind::Strategic, present, item),
            None => own.push(item.clone()),
        }
    }
    *target = Value::Array(own);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_with_keys_are_merged_by_one_kind_and_replaced_by_the_other() {
        let node = json!({"metadata": {"annotations": {"a": "1", "b": "2"}},
                          "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let patch = json!({"metadata": {"annotations": {"a": null, "c": "3"}},
                           "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"},
                                                     {"type": "Ready", "reason": "x"}]}});
        let (mut merged, mut replaced) = (node.clone(), node);
        apply(Kind::Strategic, &mut merged, &patch);
        apply(Kind::Merge, &mut replaced, &patch);
        assert_eq!(merged["metadata"]["annotations"], json!({"b": "2", "c": "3"}));
        assert_eq!(
            merged["status"]["conditions"],
            json!([{"type": "Ready", "status": "True", "reason": "x"},
                                                          {"type": "NetworkUnavailable", "status": "False"}])
        );
        assert_eq!(replaced["status"], patch["status"]);
    }
}
