//! Conformance: the same scripts on the kernel's own tun and on memtun, every result equal.
//!
//! The client of a script is a small C program (`step/`), so that each step is one system call. Its results on the kernel are
//! kept (`golden/`), and compared anew to this kernel's where it lets us; those on memtun are compared to the kept ones.

mod golden;
mod kernel;
mod script;
mod subject;

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use self::script::Script;
use crate::support::program;

/// Tests of the kernel itself.
pub const KERNEL_TESTS: &[(&str, fn())] = &[
    ("kernel_gives_what_is_kept", || kernel_gives_what_is_kept(Width::Native)),
    ("kernel_gives_what_is_kept_to_32_bit_programs", || kernel_gives_what_is_kept(Width::Compat)),
];

/// Why the kernel's own tun cannot be had.
pub fn kernel_obstacle() -> Option<String> {
    let (major, minor) = kernel::version();
    let (kept_major, kept_minor) = golden::VERSION;
    if (major, minor) < golden::VERSION {
        return Some(format!(
            "Linux {major}.{minor} is older than {kept_major}.{kept_minor}, whose results are kept"
        ));
    }
    kernel::obstacle()
}

/// What the client is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Native,
    Compat,
}

impl Width {
    fn program(self) -> PathBuf {
        let source = "tests/conformance/step/step.c";
        match self {
            Self::Native => program::compiled_as(source, "step", &["-static"]),
            Self::Compat => program::compiled_as(source, "step-32", &["-m32", "-static"]),
        }
    }

    fn suits(self, script: &Script) -> bool {
        match self {
            Self::Native => !script.needs("32"),
            Self::Compat => !script.needs("64"),
        }
    }

    /// The kept result as this program tells it: the end of a `struct ifreq` is there only for 64-bit programs.
    fn told(self, result: &str) -> String {
        match (self, result.rfind(" tail=")) {
            (Self::Compat, Some(tail)) => result[..tail].to_owned(),
            (Self::Compat, None) | (Self::Native, _) => result.to_owned(),
        }
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance"))
}

/// All scripts, or those with `MEMTUN_TEST_SCRIPT` in their names.
fn scripts(width: Width) -> Vec<Script> {
    let wanted = std::env::var("MEMTUN_TEST_SCRIPT").unwrap_or_default();
    let entries = fs::read_dir(folder().join("scripts")).expect("there are scripts");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let scripts: Vec<Script> = paths
        .iter()
        .map(|path| Script::read(path))
        .filter(|script| script.name.contains(&wanted) && width.suits(script))
        .collect();
    assert!(!scripts.is_empty(), "no script has {wanted:?} in its name");
    scripts
}

/// Where one answered as the other did not.
struct Difference<'a> {
    script: &'a Script,
    line: usize,
    step: String,
    kernel: String,
    other: String,
}

impl Difference<'_> {
    fn show(&self, other: &str, into: &mut String) {
        let Self { script, line, step, kernel, other: got } = self;
        writeln!(
            into,
            "{}.steps:{line}: {step}\n    kernel: {kernel}\n    {other}: {got}",
            script.name
        )
        .expect("a string takes it");
    }
}

fn compare<'a>(
    script: &'a Script,
    kernel: &[Option<String>],
    other: &[Option<String>],
) -> Vec<Difference<'a>> {
    let lines = script.lines.iter().zip(kernel.iter().zip(other));
    lines
        .filter(|(_, (kernel, other))| kernel != other)
        .map(|(line, (kernel, other))| Difference {
            script,
            line: line.number,
            step: line.action.to_string(),
            kernel: kernel.clone().unwrap_or_default(),
            other: other.clone().unwrap_or_default(),
        })
        .collect()
}

fn kernel_gives_what_is_kept(width: Width) {
    let program = width.program();
    let bless = std::env::var_os("MEMTUN_BLESS").is_some();
    let mut report = String::new();
    for script in scripts(width) {
        let mut subject = kernel::subject(&program);
        let results = subject.perform(&script.lines);
        let results = results.unwrap_or_else(|error| panic!("{}: {error}", script.name));
        if bless && (width == Width::Native || script.needs("32")) {
            golden::write(&script, &results);
        }
        match golden::read(&script) {
            Err(stale) => writeln!(report, "{stale}").expect("a string takes it"),
            Ok(kept) => {
                let kept = told(&kept, width);
                let differences = compare(&script, &kept, &results);
                differences.iter().for_each(|found| found.show("this kernel", &mut report));
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

fn told(results: &[Option<String>], width: Width) -> Vec<Option<String>> {
    results.iter().map(|result| result.as_deref().map(|result| width.told(result))).collect()
}
