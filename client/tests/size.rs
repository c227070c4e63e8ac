//! A test suite that depends on the client builds few crates for it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, process::Command};

/// As many crates of others are in its tree.
const MAX_CRATES: usize = 15;

#[test]
fn tree_of_the_client_is_small() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-p", "memtun-client", "-e", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let (ours, others): (Vec<&str>, Vec<&str>) =
        crates.into_iter().partition(|name| name.starts_with("memtun-"));
    assert_eq!(ours.len(), 2, "the client and the protocol: {ours:?}");
    assert!(others.len() <= MAX_CRATES, "{} crates: {others:#?}", others.len());
}
