//! A way in for the fuzz targets: what an API server, or whoever is in its place, may answer.

use super::annotations::{Annotations, Names};
use super::connection::{Failure, failure, parse};
use super::list::{Cut, Metadata};
use super::node::{Conditions, Node, Pod};
use super::roster::Roster;
use super::watch::{Bookmark, Event, refusal, take};
use crate::family::Family;
use axum::http::{Response, header::RETRY_AFTER};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;

const NAMES: &str = "flannel.alpha.coreos.com";

/// A list as it ought to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole<'a> {
    metadata: Metadata,
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

/// A list of nodes that comes in parts of `size` bytes. It is the same list as in one piece, and as another parser sees it.
pub(crate) fn list(size: usize, text: &[u8]) {
    let found = cut(text.chunks(size.max(1)));
    assert_eq!(found, cut(std::iter::once(text)), "in parts");
    let Ok(whole) = serde_json::from_slice::<Whole<'_>>(text) else { return };
    let objects: Vec<String> = whole.items.iter().map(|object| object.get().trim().to_owned()).collect();
    // What is no object is left to the parser of objects, or counts as a part of the frame.
    if text.trim_ascii_start().starts_with(b"{")
        && objects.iter().all(|object| object.starts_with('{'))
        && !whole.metadata.resource_version.is_empty()
    {
        let (cut, version) = found.expect("what is a list is read as one");
        let cut: Vec<&str> = cut.iter().map(|object| object.trim()).collect();
        assert_eq!((cut, version), (objects.iter().map(String::as_str).collect(), whole.metadata.resource_version));
    }
}

/// The objects, and of which moment the list is.
fn cut<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Option<(Vec<String>, String)> {
    let (mut cut, mut found) = (Cut::default(), Vec::new());
    for part in parts {
        let mut object = |text: &[u8]| {
            let _ = parse::<Node>(text);
            found.push(String::from_utf8_lossy(text).into_owned());
            Ok(())
        };
        cut.take(part, &mut object).ok()?;
    }
    let version = cut.end().ok()?.resource_version;
    Some((found, version))
}

/// The lines of a watch. However it goes, each subnet is one node's, and what a node says is what it would write.
pub(crate) fn watch(families: &[Family], text: &[u8]) {
    let names = Arc::new(Names::new(NAMES).expect("flannel's own"));
    let mut roster = Roster::new(names.clone(), families, "own");
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(event) = parse::<Event<'_>>(line) else { continue };
        let object = event.object.get().as_bytes();
        let _ = (parse::<Bookmark>(object), parse::<Conditions>(object).map(|found| found.network_is_up()));
        let _ = (refusal(&event), parse::<Pod>(object).map(Pod::node));
        if let Ok(node) = parse::<Node>(object) {
            say_again(&names, families, &node);
        }
        let _ = take(&mut roster, &event);
    }
    for lease in roster.listing().leases.iter() {
        assert!(!lease.subnets.is_empty() && lease.subnets.families().all(|family| families.contains(&family)));
    }
}

fn say_again(names: &Names, families: &[Family], node: &Node) {
    let _ = (names.laid_down(node.annotations()), node.subnets(families));
    let Ok(Some(lease)) = node.lease(names, families) else { return };
    let published = names.overwritten(lease.announcement, node.annotations());
    let written = |present: &Annotations| {
        let changes = names.changes(&published, families, present);
        changes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect::<BTreeMap<_, _>>()
    };
    let annotations = written(&Annotations::new());
    assert_eq!(names.announcement(&annotations).as_ref(), Ok(&published));
    assert!(names.is_managed(&annotations) && written(&annotations).is_empty());
}

/// An answer that is no success: its code, what it says of when to come again, and its text.
pub(crate) fn refused(code: u16, retry_after: &[u8], text: &[u8]) {
    let answer = Response::builder().status(code).header(RETRY_AFTER, retry_after).body(());
    let Ok(answer) = answer else { return };
    let meaning = failure(&answer.into_parts().0, text);
    if let Failure::Throttled(_, wait) | Failure::Behind(_, wait) = &meaning {
        assert!((1..=30).contains(&wait.as_secs()));
    }
    // The server's words, bounded, and our own.
    assert!(meaning.words().chars().count() < 1000);
}
