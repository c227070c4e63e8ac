//! `docs/control.schema.json` is made from the types.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{fs, path::Path};

use memtun_proto::{METHODS, error::code, schema};

#[test]
fn schema_in_the_documentation_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.schema.json");
    let made = format!("{:#}\n", schema::document());
    if std::env::var_os("MEMTUN_BLESS").is_some() {
        fs::write(&path, made).expect("the schema can be written");
    } else {
        let stored = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == made,
            "docs/control.schema.json is stale; MEMTUN_BLESS=1 cargo test -p memtun-proto --test schema writes it anew"
        );
    }
}

#[test]
fn documentation_names_every_method_and_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    let text = fs::read_to_string(path).expect("the documentation can be read");
    // In the first table of a section.
    let first_cells = |heading: &str| -> Vec<String> {
        let section = text.split(heading).nth(1).expect("the section is there");
        let rows = section.lines().skip_while(|line| !line.starts_with("| `"));
        let rows = rows.take_while(|line| line.starts_with('|'));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
    };
    let mut documented = first_cells("\n## Methods\n");
    let mut known: Vec<&str> = METHODS.to_vec();
    documented.sort();
    known.sort_unstable();
    assert_eq!(documented, known, "methods");
    let mut documented = first_cells("\n## Errors\n");
    let mut known: Vec<&str> = code::ALL.iter().map(|(code, _)| *code).collect();
    documented.sort();
    known.sort_unstable();
    assert_eq!(documented, known, "codes");
}
