//! The list of flannel's defects names tests that exist.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::Path;

#[test]
fn every_defect_has_a_test_that_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(here.join("DEFECTS.md")).unwrap();
    let rows: Vec<&str> = list.lines().filter(|line| line.starts_with("| F")).collect();
    assert_eq!(rows.len(), 19);
    for (number, row) in (1..).zip(rows) {
        assert!(row.starts_with(&format!("| F{number} |")), "{row}");
        let named: Vec<(&str, &str)> = row.split('`').filter_map(|text| text.split_once(".rs::")).collect();
        assert!(!named.is_empty(), "F{number} has no test");
        for (file, test) in named {
            let source = fs::read_to_string(here.join("..").join(format!("{file}.rs"))).unwrap_or_default();
            assert!(source.contains(&format!("fn {test}(")), "F{number}: there is no {file}.rs::{test}");
        }
    }
}
