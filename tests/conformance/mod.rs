//! Conformance: the same scripts on the kernel's own tun and on memtun, every result equal.
//!
//! The client of a script is a small C program (`step/`), so that each step is one system call. Its results on the kernel are
//! kept (`golden/`), and compared anew to this kernel's where it lets us; those on memtun are compared to the kept ones.

mod expected;
mod golden;
mod kernel;
mod linked;
mod memtun;
mod random;
mod script;
mod subject;

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use ::memtun::core::Interface;

use self::{
    expected::{EXPECTED, Expected, matches},
    memtun::{Device, FrontEnd},
    script::Script,
};
use crate::{
    DeviceTest,
    run::{RunTest, User},
    support::{daemon::Backend, program},
};

/// Tests by what their client is compiled for.
pub struct Tests<T: 'static> {
    pub native: &'static [(&'static str, T)],
    /// Of 32-bit programs.
    pub compat: &'static [(&'static str, T)],
}

/// Tests that need the kernel's tun.
pub const OF_KERNEL: Tests<fn()> = Tests {
    native: &[
        ("kernel_gives_what_is_kept", || kernel_gives_what_is_kept(Width::Native)),
        ("random_sequences_agree", || {
            random::agree(FrontEnd::plain(Device::Fuse(User::Root)), 10_000, 8)
        }),
        ("random_sequences_agree_with_a_bridge", || {
            random::agree(linked(Device::Fuse(User::Root), Interface::Bridge), 500, 8);
        }),
    ],
    compat: &[("kernel_gives_what_is_kept_to_32_bit_programs", || {
        kernel_gives_what_is_kept(Width::Compat);
    })],
};

/// Tests of a character device.
pub const OF_CUSE: Tests<fn(Backend)> = Tests {
    native: &[
        ("conformance_of_scripts", |_| scripts_on(FrontEnd::plain(Device::Cuse), Width::Native)),
        ("conformance_of_random_sequences", |_| {
            random::agree(FrontEnd::plain(Device::Cuse), 50, 2)
        }),
    ],
    compat: &[("conformance_of_scripts_of_32_bit_programs", |_| {
        scripts_on(FrontEnd::plain(Device::Cuse), Width::Compat);
    })],
};

/// Tests of `memtun run`.
pub const OF_RUN: Tests<fn(User)> = Tests {
    native: &[
        ("conformance_of_scripts", |user| {
            scripts_on(FrontEnd::plain(Device::Fuse(user)), Width::Native)
        }),
        ("conformance_of_scripts_by_notifications", |user| {
            scripts_on(FrontEnd::plain(Device::Notify(user)), Width::Native)
        }),
    ],
    compat: &[
        ("conformance_of_scripts_of_32_bit_programs", |user| {
            scripts_on(FrontEnd::plain(Device::Fuse(user)), Width::Compat);
        }),
        ("conformance_of_scripts_of_32_bit_programs_by_notifications", |user| {
            scripts_on(FrontEnd::plain(Device::Notify(user)), Width::Compat);
        }),
    ],
};

/// Tests of `memtun run` with interfaces.
pub const OF_LINKS: &[RunTest] = &[
    ("conformance_of_scripts_with_a_shadow", |user| {
        scripts_on(linked(Device::Fuse(user), Interface::Shadow), Width::Native);
    }),
    ("conformance_of_scripts_with_a_bridge", |user| {
        scripts_on(linked(Device::Fuse(user), Interface::Bridge), Width::Native);
    }),
];

/// The same on a character device.
pub const OF_LINKS_OF_CUSE: &[DeviceTest] = &[
    ("conformance_of_scripts_with_a_shadow", |_| {
        scripts_on(linked(Device::Cuse, Interface::Shadow), Width::Native);
    }),
    ("conformance_of_scripts_with_a_bridge", |_| {
        scripts_on(linked(Device::Cuse, Interface::Bridge), Width::Native);
    }),
];

const fn linked(device: Device, interface: Interface) -> FrontEnd {
    FrontEnd { device, interface }
}

/// Tests that need nothing.
pub const TESTS: &[(&str, fn())] = &[("differences_are_explained", differences_are_explained)];

/// Why there can be no 32-bit programs. The one that is needed is compiled here, so that it does not matter what becomes of the
/// compiler later.
pub fn compat_obstacle() -> Option<String> {
    let links = program::compiles("int main(void) { return 0; }", Width::Compat.options());
    // A mistake in the source is for the tests that need it.
    let _outcome = links.then(|| Width::Compat.try_program());
    (!links).then(|| "cc -m32 -static does not link (Debian: gcc-multilib)".to_owned())
}

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
    #[track_caller]
    fn program(self) -> PathBuf {
        self.try_program().unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_program(self) -> Result<PathBuf, String> {
        let name = match self {
            Self::Native => "step",
            Self::Compat => "step-32",
        };
        program::try_compiled_as("tests/conformance/step/step.c", name, self.options())
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Native => &["-static"],
            Self::Compat => &["-m32", "-static"],
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
        let results = subject.perform(&script.lines, None);
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

fn scripts_on(front_end: FrontEnd, width: Width) {
    let program = width.program();
    let mut report = String::new();
    let mut occurred = BTreeSet::new();
    let (tried, skipped): (Vec<Script>, Vec<Script>) = scripts(width)
        .into_iter()
        .partition(|script| !script.needs.iter().any(|need| front_end.lacks(need)));
    for script in skipped {
        println!(
            "SKIP {}: it needs {:?}, not all of which {front_end:?} has",
            script.name, script.needs
        );
    }
    let mut subject = front_end.subject(&program);
    for script in &tried {
        let kept = golden::read(script).unwrap_or_else(|stale| panic!("{stale}"));
        let kept = told(&kept, width);
        let results = subject.perform(&script.lines, Some(&kept));
        let results = results.unwrap_or_else(|error| panic!("{}: {error}", script.name));
        subject.reset(&[]).unwrap_or_else(|error| panic!("after {}: {error}", script.name));
        let (known, unknown): (Vec<_>, Vec<_>) = compare(script, &kept, &results)
            .into_iter()
            .map(|found| (explained(front_end, &found), found))
            .partition(|(row, _)| row.is_some());
        occurred.extend(known.into_iter().filter_map(|(row, _)| row));
        let unknown = unknown.into_iter().map(|(_, found)| found).collect();
        for found in front_end.not_of_this_kernel(unknown, &program) {
            found.show("memtun", &mut report);
        }
    }
    if std::env::var_os("MEMTUN_TEST_SCRIPT").is_none() {
        for (number, row) in EXPECTED.iter().enumerate() {
            let is_due =
                row.of.contains(front_end) && tried.iter().any(|script| row.is_met_in(script));
            if is_due && !occurred.contains(&number) {
                writeln!(report, "this difference does not occur: {row:?}")
                    .expect("a string takes it");
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

impl FrontEnd {
    /// With a link it is the running kernel that decides, which may be an older one than that whose results are kept: leaves out,
    /// and prints, what it answers itself.
    fn not_of_this_kernel<'a>(
        self,
        mut found: Vec<Difference<'a>>,
        program: &Path,
    ) -> Vec<Difference<'a>> {
        let is_older = kernel::version() < golden::VERSION;
        if let Some(Difference { script, .. }) = found.first()
            && self.interface != Interface::None
            && is_older
        {
            let results = kernel::subject(program).perform(&script.lines, None);
            let results = results.unwrap_or_else(|error| panic!("{}: {error}", script.name));
            let is_its_own = |found: &Difference<'_>| {
                let at = script.lines.iter().position(|line| line.number == found.line);
                let is = at.is_some_and(|at| results[at].as_deref() == Some(&found.other));
                if is {
                    println!(
                        "{}.steps:{} as this kernel: {}",
                        script.name, found.line, found.other
                    );
                }
                is
            };
            found.retain(|found| !is_its_own(found));
        }
        found
    }
}

/// The row of the table that a difference is in.
fn explained(front_end: FrontEnd, found: &Difference<'_>) -> Option<usize> {
    EXPECTED.iter().position(|row| row.explains(front_end, found))
}

impl Expected {
    /// Whether a script has such a step.
    fn is_met_in(&self, script: &Script) -> bool {
        let mut steps = script.lines.iter().map(|line| line.action.to_string());
        matches(self.script, &script.name) && steps.any(|step| matches(self.step, &step))
    }

    fn explains(&self, front_end: FrontEnd, found: &Difference<'_>) -> bool {
        self.of.contains(front_end)
            && matches(self.script, &found.script.name)
            && matches(self.step, &found.step)
            && matches(self.kernel, &found.kernel)
            && matches(self.memtun, &found.other)
    }
}

/// Every row of the table is explained where the list of differences is made from.
fn differences_are_explained() {
    let list = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/differences.md"));
    let list = list.expect("there is a list of differences");
    for row in EXPECTED {
        let begins = format!("\n- {}", row.because);
        assert!(list.contains(&begins), "no DIFFERS: begins with {:?}", row.because);
    }
}
