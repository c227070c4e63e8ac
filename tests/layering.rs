//! Rules of the architecture that are read off the sources. That modules make no circles is the test `circles`; between crates
//! the compiler holds it.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub const TESTS: &[(&str, fn())] = &[
    ("nothing_under_the_lock_makes_a_system_call", nothing_under_the_lock_makes_a_system_call),
    ("unsafe_code_is_in_sys_alone", unsafe_code_is_in_sys_alone),
    ("protocol_crate_knows_no_tun", protocol_crate_knows_no_tun),
    ("files_stay_readable", files_stay_readable),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust source below a folder or file of the repository.
fn sources(path: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(path)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{path} has sources");
    found
}

/// The code of a source: without comments, and without its tests at the end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The closures that `Hub::view` runs under its lock call the core, which is pure, and nothing else that could.
fn nothing_under_the_lock_makes_a_system_call() {
    let mut closures = 0;
    for source in sources("src") {
        let code = code(&source);
        for (start, _) in code.match_indices(".view(|core|") {
            let mut depth = 0;
            let closure: &str = code[start + 5..]
                .char_indices()
                .find(|(_, c)| {
                    depth += i32::from(*c == '(') - i32::from(*c == ')');
                    depth == 0
                })
                .map(|(end, _)| &code[start + 5..start + 5 + end])
                .expect("the parenthesis is closed");
            closures += 1;
            for word in [
                "fs::", "io::", "nix::", "thread::", "send", "recv", "channel", "outbox", "hub",
                "lock(", "info!", "debug!", "warn!",
            ] {
                assert!(
                    !closure.contains(word),
                    "{}: {word} under the lock: {closure}",
                    source.display()
                );
            }
        }
    }
    assert!(closures >= 10, "{closures} closures were found");
}

fn unsafe_code_is_in_sys_alone() {
    for source in ["src", "client/src", "cuse-rs/src", "proto/src"].map(sources).concat() {
        let code = code(&source);
        let allowed =
            source.starts_with(root().join("src/sys")) || source.ends_with("cuse-rs/src/sys.rs");
        assert!(allowed || !code.contains("unsafe {"), "{}", source.display());
    }
}

fn protocol_crate_knows_no_tun() {
    for source in sources("cuse-rs/src") {
        let code = code(&source).to_lowercase();
        for word in ["tunsetiff", "iff_tun", "memtun"] {
            assert!(!code.contains(word), "{} names {word}", source.display());
        }
    }
}

fn files_stay_readable() {
    for path in ["src", "client/src", "core/src", "cuse-rs/src", "proto/src", "tests"] {
        for source in sources(path) {
            let lines = fs::read_to_string(&source).unwrap().lines().count();
            assert!(
                lines <= 800,
                "{} has {lines} lines; one reason to change a file",
                source.display()
            );
        }
    }
}
