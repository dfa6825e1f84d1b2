//! The page: what differs and why, and what was compared.

use super::case::Run;
use super::facts::{Difference, Facts};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Names of conflists that a row of the page shows.
const SHOWN: usize = 3;
/// Longest fact that the page shows, in characters.
const LONGEST: usize = 160;

/// A conflist that both sides ran.
pub(super) struct Compared {
    pub(super) run: Run,
    pub(super) ours: Facts,
    pub(super) theirs: Facts,
}

/// Why some facts differ.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// the heading
    pub(super) title: String,
    /// in two or three sentences
    why: String,
    /// names of facts; `*` stands for anything
    facts: Vec<String>,
    /// names of conflists likewise; all, if none is named
    #[serde(default)]
    conflists: Vec<String>,
}

impl Reason {
    fn is_for(&self, conflist: &str, fact: &str) -> bool {
        let any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| matches(pattern, text));
        any(&self.facts, fact) && (self.conflists.is_empty() || any(&self.conflists, conflist))
    }
}

/// Whether `text` is as `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
        }),
    }
}

/// A page, and what is wrong with it.
pub(super) struct Page {
    pub(super) text: String,
    /// differences that no reason is given for
    pub(super) unexplained: Vec<String>,
    /// reasons for which nothing differs
    pub(super) idle: Vec<String>,
}

/// Makes the page.
pub(super) fn render(all: &[Compared], reasons: &[Reason]) -> Page {
    let mut rows: Vec<BTreeMap<Difference, Vec<&str>>> = reasons.iter().map(|_| BTreeMap::new()).collect();
    let mut unexplained = Vec::new();
    let mut summary = String::new();
    for compared in all {
        let mut sections = BTreeSet::new();
        let differing = compared.ours.differences(&compared.theirs);
        let facts = compared.ours.0.keys().chain(compared.theirs.0.keys()).collect::<BTreeSet<_>>().len();
        assert!(facts > 5, "hardly anything was seen of {}", compared.run.name);
        for row in differing {
            match reasons.iter().position(|reason| reason.is_for(&compared.run.name, &row.0)) {
                Some(number) => {
                    sections.insert(number + 1);
                    rows[number].entry(row).or_default().push(&compared.run.name);
                }
                None => {
                    unexplained.push(format!("{}: {}: ours {:?}, theirs {:?}", compared.run.name, row.0, row.1, row.2))
                }
            }
        }
        let sections: Vec<String> = sections.iter().map(usize::to_string).collect();
        let sections = if sections.is_empty() { "equal".into() } else { sections.join(", ") };
        writeln!(summary, "| {} | {sections} |", compared.run.name).unwrap();
    }
    let mut text = HEADER.replace("COUNT", &all.len().to_string());
    for ((number, reason), rows) in (1..).zip(reasons).zip(&rows) {
        write!(
            text,
            "\n## {number}. {}\n\n{}\n\n| what | ours | reference | conflists |\n|---|---|---|---|\n",
            reason.title, reason.why
        )
        .unwrap();
        for ((name, ours, theirs), conflists) in rows {
            let more = conflists.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = conflists[..conflists.len().min(SHOWN)].join("; ");
            writeln!(text, "| {} | {} | {} | {shown}{more} |", cell(name), cell(ours), cell(theirs)).unwrap();
        }
    }
    write!(text, "\n## What was compared\n\n| conflist | sections with its differences |\n|---|---|\n{summary}")
        .unwrap();
    let idle = reasons.iter().zip(&rows).filter(|(_, rows)| rows.is_empty()).map(|(reason, _)| reason.title.clone());
    Page { text, unexplained, idle: idle.collect() }
}

fn cell(text: &str) -> String {
    let short: String = text.chars().take(LONGEST).collect();
    let more = if short.len() < text.len() { " ..." } else { "" };
    format!("{}{more}", short.replace('|', "\\|").replace('\n', " "))
}

const HEADER: &str = "# Where our plugins differ from the reference plugins

COUNT conflists (`e2e/tests/plugins/conflists`) are run by ours and by version 1.1.1 of the reference plugins, as Debian 12
ships them, in like network namespaces: a node, one or two pods, and a host outside. Compared are the results of ADD, CHECK and DEL;
all settings of all devices; addresses, routes, queues and kernel parameters of pods and node; the plugins' files; which of
pods, node and outside reaches which, and as whom, by addresses and by ports of the node; and what DEL leaves. Rules are
compared by what they do, not by their text. Words in capitals stand for what is chance in a run, such as MACs.

This page is written by the test that compares (`make golden`), with the reasons of `e2e/tests/plugins/reasons.json`. A
difference without a reason fails the test, and so does a reason without a difference.
";
