//! `docs/differences.md` is made from the `DIFFERS:` tags of the sources: where behaviour is not the kernel's, and why.

use std::{fs, path::Path};

pub const TESTS: &[(&str, fn())] = &[("list_is_that_of_the_sources", list_is_that_of_the_sources)];

const LIST: &str = "docs/differences.md";
const HEAD: &str = "\
# Differences from the kernel's tun

This is where memtun does not behave as `drivers/net/tun.c`, and why. The list is generated from the comments tagged `DIFFERS:` in
the sources and tests. A test fails when it is stale; `MEMTUN_BLESS=1 cargo test --test integration differences` writes it again. What
CUSE and FUSE cannot carry at all is in [cuse-rs/README.md](../cuse-rs/README.md).

";

/// The paragraphs that begin with the tag, each as one line.
fn differences(path: &Path, into: &mut Vec<String>) {
    let text = fs::read_to_string(path).expect("a source can be read");
    let mut lines = text.lines().map(str::trim_start);
    while let Some(line) = lines.next() {
        let marker = ["//! ", "/// ", "// "].into_iter().find(|marker| line.starts_with(marker));
        let Some((marker, first)) = marker.and_then(|marker| {
            line.strip_prefix(marker)?.strip_prefix("DIFFERS: ").map(|first| (marker, first))
        }) else {
            continue;
        };
        let rest = lines.by_ref().map_while(|line| line.strip_prefix(marker));
        let words: Vec<&str> =
            std::iter::once(first).chain(rest).flat_map(str::split_whitespace).collect();
        let shown =
            path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("below the root").display();
        into.push(format!("- {} (`{shown}`)\n", words.join(" ")));
    }
}

fn list_is_that_of_the_sources() {
    let mut found = Vec::new();
    let mut open = ["core/src", "src", "cuse-rs/src", "tests"]
        .map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .to_vec();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .expect("a folder can be read")
                    .map(|entry| entry.expect("an entry").path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("differences.rs")
        {
            differences(&path, &mut found);
        }
    }
    found.sort();
    assert!(found.len() >= 5, "{found:?}");
    let list = format!("{HEAD}{}", found.concat());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LIST);
    if std::env::var_os("MEMTUN_BLESS").is_some() {
        fs::write(&path, list).expect("the list can be written");
    } else {
        let stored = fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == list, "{LIST} is stale; MEMTUN_BLESS=1 writes it anew");
    }
}
