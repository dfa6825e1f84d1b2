//! What is known about one run, as text by name: whatever two runs do not share can be listed.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a fact says of a verb that succeeds.
pub(super) const SUCCESS: &str = "succeeds";

/// Facts by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts(pub(super) BTreeMap<String, String>);

/// What two runs do not share: the fact's name, and what it is in the one and in the other.
pub(super) type Difference = (String, String, String);

/// Names that differ from run to run, and what is written in their places.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    names: Vec<(String, String)>,
    known: String,
}

impl StandIns {
    /// Every MAC that is not in the text `known` is chance.
    pub(super) fn except(known: String) -> Self {
        StandIns { names: Vec::new(), known }
    }

    pub(super) fn put(&mut self, real: &str, shown: impl Into<String>) {
        self.names.push((real.into(), shown.into()));
    }

    fn apply(&self, text: &str) -> String {
        let mut text = self.names.iter().fold(text.to_owned(), |text, (real, shown)| text.replace(real, shown));
        if text.bytes().filter(|byte| *byte == b':').count() < 5 {
            return text;
        }
        let mut at = 0;
        while let Some(piece) = text.get(at..) {
            let Some(found) = (0..piece.len()).find(|start| piece.get(*start..*start + 17).is_some_and(is_mac)) else {
                break;
            };
            at += found;
            if self.known.contains(&text[at..at + 17]) || matches!(&text[at..at + 17], ZEROS | ONES) {
                at += 17;
            } else {
                text.replace_range(at..at + 17, "MAC");
            }
        }
        text
    }
}

const ZEROS: &str = "00:00:00:00:00:00";
const ONES: &str = "ff:ff:ff:ff:ff:ff";

fn is_mac(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, byte)| if at % 3 == 2 { byte == b':' } else { byte.is_ascii_hexdigit() })
}

impl Facts {
    pub(super) fn put(&mut self, name: impl Into<String>, fact: impl Into<String>) {
        self.0.insert(name.into(), fact.into());
    }

    /// One fact for each leaf of a JSON value. `leave_out` names keys that say nothing about what the plugins did.
    pub(super) fn put_all(&mut self, name: &str, value: &Value, leave_out: &[&str]) {
        match value {
            Value::Object(object) => {
                for (key, value) in object.iter().filter(|(key, _)| !leave_out.contains(&key.as_str())) {
                    self.put_all(&format!("{name} {key}"), value, leave_out);
                }
            }
            Value::Array(items) if items.iter().all(Value::is_string) => {
                let mut items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                // Flags come in the order of their bits, which is of no interest; servers and domains in that of their use.
                if name.ends_with("flags") {
                    items.sort_unstable();
                }
                self.put(name, items.join(" "));
            }
            Value::Array(items) => {
                for (number, item) in items.iter().enumerate() {
                    self.put_all(&format!("{name} {number}"), item, leave_out);
                }
            }
            Value::String(text) => self.put(name, text),
            other => self.put(name, other.to_string()),
        }
    }

    /// What is not the same in `other`; `-` is nothing.
    ///
    /// Where only one of them has attached the pods, there is nothing more to compare. Where both refuse something, each
    /// has its own words.
    pub(super) fn differences(&self, other: &Facts) -> Vec<Difference> {
        let mut names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let attached = |facts: &Facts| facts.0.get("ADD 1").is_some_and(|add| add == SUCCESS);
        if attached(self) != attached(other) {
            names.retain(|name| name.starts_with("ADD 1"));
        }
        names.retain(|name| !(name.ends_with(" says") && self.0.contains_key(*name) && other.0.contains_key(*name)));
        let fact = |facts: &Facts, name: &String| facts.0.get(name).cloned().unwrap_or("-".into());
        let all = names.into_iter().map(|name| (name.clone(), fact(self, name), fact(other, name)));
        all.filter(|(_, one, other)| one != other).collect()
    }

    /// The same facts with other words for what differs from run to run.
    pub(super) fn with(self, words: &StandIns) -> Self {
        Facts(self.0.into_iter().map(|(name, fact)| (words.apply(&name), words.apply(&fact))).collect())
    }
}
