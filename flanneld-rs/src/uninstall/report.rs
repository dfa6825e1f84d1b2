//! What came of an uninstall, for people and for programs.

use serde::Serialize;
use std::fmt;

/// Everything that was found, in the order in which it was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// nothing was changed
    pub dry_run: bool,
    /// what was found
    pub items: Vec<Item>,
}

/// One thing of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// file, directory, route, link, table or sysctl; kernel: the routes and links could not be looked at; daemon: one runs
    pub kind: String,
    /// which of them
    pub name: String,
    /// what became of it
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "lowercase")]
pub enum Outcome {
    /// it would go
    Planned,
    /// it is gone, or has its first value again
    Done,
    /// it stays, for this reason
    Kept(String),
    /// it is still there, for this reason
    Failed(String),
}

impl Item {
    /// Of a kind, with a name.
    pub fn new(kind: &str, name: String, outcome: Outcome) -> Self {
        Item { kind: kind.into(), name, outcome }
    }
}

impl Report {
    /// How many are still there that should not be.
    pub fn failures(&self) -> usize {
        self.items.iter().filter(|item| matches!(item.outcome, Outcome::Failed(_))).count()
    }
}

/// A table, a line for each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.items.is_empty() {
            return f.write_str("nothing of flanneld-rs is on this node\n");
        }
        let width = |text: fn(&Item) -> &str, head: &str| {
            self.items.iter().map(|item| text(item).chars().count()).chain([head.len()]).max().unwrap_or(0)
        };
        let (kinds, names) = (width(|item| &item.kind, "KIND"), width(|item| &item.name, "NAME"));
        writeln!(f, "{:kinds$}  {:names$}  OUTCOME", "KIND", "NAME")?;
        for item in &self.items {
            writeln!(f, "{:kinds$}  {:names$}  {}", item.kind, item.name, item.outcome)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Planned => f.write_str("would go"),
            Outcome::Done => f.write_str("done"),
            Outcome::Kept(reason) => write!(f, "kept: {reason}"),
            Outcome::Failed(reason) => write!(f, "FAILED: {reason}"),
        }
    }
}
