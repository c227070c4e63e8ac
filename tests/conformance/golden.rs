//! What the kernel answered, kept in `golden/`, so that memtun can be compared to it where the kernel's tun cannot be had.
//!
//! Each line of a script is followed by its result, indented. `MEMTUN_BLESS=1` writes the files anew.

use std::{fmt::Write, fs, path::PathBuf};

use super::{kernel, script::Script};

/// The kernel whose answers they are. Newer ones must give the same; what older ones do not do is in their changelogs.
pub const VERSION: (u32, u32) = (6, 18);

fn path(script: &Script) -> PathBuf {
    super::folder().join("golden").join(format!("{}.txt", script.name))
}

fn head() -> String {
    format!("# Linux {}.{}\n", VERSION.0, VERSION.1)
}

/// Keeps results.
pub fn write(script: &Script, results: &[Option<String>]) {
    assert_eq!(kernel::version(), VERSION, "goldens are written on this kernel");
    let mut text = head();
    for (line, result) in script.lines.iter().zip(results) {
        writeln!(text, "{}", line.action).expect("a string takes it");
        if let Some(result) = result {
            writeln!(text, "    {result}").expect("a string takes it");
        }
    }
    fs::write(path(script), text).expect("a golden can be written");
}

/// The results of a script, if they are of this script.
pub fn read(script: &Script) -> Result<Vec<Option<String>>, String> {
    let path = path(script);
    let stale = || format!("{} is stale; MEMTUN_BLESS=1 writes it anew", path.display());
    let text = fs::read_to_string(&path).map_err(|_| stale())?;
    let mut lines = text.strip_prefix(&head()).ok_or_else(stale)?.lines().peekable();
    let results = script
        .lines
        .iter()
        .map(|line| {
            let step = lines.next().filter(|step| *step == line.action.to_string());
            step.map(|_| lines.next_if(|line| line.starts_with(' ')).map(|l| l.trim().to_owned()))
        })
        .collect::<Option<Vec<_>>>();
    results.filter(|_| lines.next().is_none()).ok_or_else(stale)
}
