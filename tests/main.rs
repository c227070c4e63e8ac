//! Tests against the real thing: the program, its device, and what stands around them.
//!
//! A test of the device runs once for each kind of device, as `cuse::NAME`. A kind that cannot be had here is shown as
//! ignored, with a line that says why; `MEMTUN_TEST_REQUIRE=cuse` makes that a failure, so that a run that is meant to
//! test a kind cannot pass without it. So does `MEMTUN_TEST_REQUIRE=clients` for the tests of programs that may not be
//! installed, and `MEMTUN_TEST_REQUIRE=native` for the comparisons with the kernel's own tun.

#![allow(unreachable_pub, reason = "nothing is reachable from outside a test program")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic and print"
)]

mod abi;
mod bpf;
mod captures;
mod circles;
mod cli;
mod clients;
mod conformance;
mod control;
mod control_costs;
mod device;
mod differences;
mod hostile;
mod interface;
mod layering;
mod limits;
mod log;
mod native;
mod netdev;
mod offload;
mod panics;
mod peers;
mod prose;
mod receipt;
mod replay;
mod restart;
mod run;
mod support;
mod terminal;
mod use_device;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    clients::{configured, containers},
    support::daemon::Backend,
};

/// A test of the device: its name, and what it does with a kind of device.
pub type DeviceTest = (&'static str, fn(Backend));

fn main() -> ExitCode {
    configured::serve_if_asked();
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = [
        ("bpf", bpf::TESTS),
        ("circles", circles::TESTS),
        ("cli", cli::TESTS),
        ("conformance", conformance::TESTS),
        ("containers", containers::TESTS),
        ("layering", layering::TESTS),
        ("differences", differences::TESTS),
        ("prose", prose::TESTS),
        ("terminal", terminal::TESTS),
        ("support", support::program::TESTS),
    ]
    .into_iter()
    .flat_map(|(group, tests)| {
        tests.iter().map(move |(name, test)| (format!("{group}::{name}"), test))
    })
    .map(|(name, test)| {
        Trial::test(name, || {
            test();
            Ok(())
        })
    })
    .collect();
    let compat = Gate::new("32-bit programs", clients::WORD, conformance::compat_obstacle());
    trials.extend(Backend::ALL.iter().flat_map(|backend| device_trials(*backend, &compat)));
    let links = Gate::new("links", "links", netdev::obstacle());
    trials.extend(
        netdev::TESTS.iter().map(|(name, test)| links.trial_of(format!("netdev::{name}"), test)),
    );
    for user in run::User::ALL {
        let gate = Gate::new(user.word(), "run", user.obstacle());
        let conformance::Tests { native, compat: of_compat } = conformance::OF_RUN;
        let tests = run::TESTS
            .into_iter()
            .flatten()
            .chain(terminal::OF_README)
            .chain(terminal::OF_RUN)
            .chain(native)
            .map(|test| (&gate, test));
        let linked = gate.and(&links);
        let of_links = conformance::OF_LINKS.iter().map(|test| (&linked, test));
        let compat = gate.and(&compat);
        let of_compat = of_compat.iter().map(|test| (&compat, test));
        trials.extend(tests.chain(of_compat).chain(of_links).map(|(gate, (name, test))| {
            let test = *test;
            gate.trial_of(format!("run::{}::{name}", user.word()), move || test(*user))
        }));
    }
    let locked = Gate::new("a locked place", "run", run::User::Root.obstacle());
    trials.extend(run::notify::OF_LOCKED.iter().map(|(name, test)| {
        let test = *test;
        locked.trial_of(format!("locked::{name}"), test)
    }));
    for way in configured::Way::ALL {
        trials.extend(configured::tests(*way).map(|test| {
            let name = format!("configured::{}::{}", way.word(), test.name);
            let gate = match test.limit(*way) {
                Some(limit) => Gate::limited(&name, limit),
                None => {
                    let (word, obstacle) = test.obstacle(*way).unzip();
                    Gate::new(&name, word.unwrap_or_default(), obstacle)
                }
            };
            let (run, way) = (test.run, *way);
            gate.trial_of(name, move || run(way))
        }));
    }
    let podman = match containers::limit() {
        Some(limit) => Gate::limited("containers", limit),
        None => Gate::new("containers", clients::WORD, containers::obstacle()),
    };
    trials.extend(containers::OF_PODMAN.iter().map(|(name, test)| {
        let test = *test;
        podman.trial_of(format!("containers::{name}"), test)
    }));
    let kernel = Gate::new("native", native::WORD, support::kernel::obstacle());
    trials.extend(native::TESTS.iter().map(|(name, test)| {
        let test = *test;
        kernel.trial_of(format!("native::{name}"), test)
    }));
    let kernel = Gate::new("conformance", native::WORD, conformance::kernel_obstacle());
    let tests = conformance::OF_KERNEL;
    for (gate, tests) in [(&kernel, tests.native), (&kernel.and(&compat), tests.compat)] {
        trials.extend(tests.iter().map(|(name, test)| {
            let test = *test;
            gate.trial_of(format!("conformance::{name}"), test)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn device_trials(backend: Backend, compat: &Gate) -> Vec<Trial> {
    let kind = Gate::new(backend.word(), backend.word(), backend.obstacle());
    // What passes a value needs `memtun run` on FUSE, which has these tests too.
    let of_cuse = || Some(conformance::OF_CUSE).filter(|_| backend == Backend::Cuse);
    let conformance = of_cuse().map_or(&[][..], |tests| tests.native);
    let of_compat = of_cuse().map_or(&[][..], |tests| tests.compat);
    let of_compat =
        of_compat.iter().map(|(name, test)| kind.and(compat).trial(backend, name, *test));
    let tests = [
        device::TESTS,
        control::TESTS,
        use_device::TESTS,
        limits::TESTS,
        control_costs::TESTS,
        log::TESTS,
        captures::TESTS,
        receipt::TESTS,
        replay::TESTS,
        offload::TESTS,
        abi::TESTS,
        terminal::OF_DEVICE,
        conformance,
    ];
    let tests = tests.iter().chain(peers::TESTS).copied().flatten();
    let of_clients = clients::TESTS.iter().map(|client| {
        let gate = match &kind {
            Gate::Open => match client.limit(backend) {
                None => Gate::new(client.name, clients::WORD, client.obstacle()),
                Some(limit) => {
                    Gate::limited(&format!("{}::{}", backend.word(), client.name), limit)
                }
            },
            Gate::Skipped | Gate::Failing(_) => kind.clone(),
        };
        gate.trial(backend, client.name, client.run)
    });
    let of_this_kind = match backend {
        Backend::Cuse => [interface::OF_CHARACTER_DEVICES, conformance::OF_LINKS_OF_CUSE],
        Backend::Fuse => [&[][..]; 2],
    };
    let of_files = Some(restart::OF_FILES).filter(|_| backend == Backend::Fuse).unwrap_or_default();
    let of_this_kind = of_this_kind.into_iter().flatten();
    let of_panics = panics::trials(backend, &kind);
    let of_interfaces = interface::TESTS
        .iter()
        .chain(hostile::TESTS.into_iter().flatten())
        .chain(of_this_kind)
        .map(|(name, test)| {
            let gate = match &kind {
                Gate::Open => Gate::new("interface", "links", netdev::obstacle()),
                Gate::Skipped | Gate::Failing(_) => kind.clone(),
            };
            gate.trial(backend, name, *test)
        });
    let tests = tests.chain(of_files);
    let tests = tests.map(|(name, test)| kind.trial(backend, name, *test));
    tests.chain(of_compat).chain(of_interfaces).chain(of_clients).chain(of_panics).collect()
}

/// Whether tests can run here, and what to make of it if they cannot.
#[derive(Clone)]
enum Gate {
    Open,
    Skipped,
    Failing(String),
}

impl Gate {
    /// For `what`, which the environment may require by a word. A skip is printed.
    fn new(what: &str, word: &str, obstacle: Option<String>) -> Self {
        let required = || {
            std::env::var("MEMTUN_TEST_REQUIRE")
                .is_ok_and(|words| words.split(',').any(|required| required == word))
        };
        match obstacle {
            None => Self::Open,
            Some(obstacle) if required() => Self::Failing(obstacle),
            Some(obstacle) => {
                println!("SKIP {what}: {obstacle}");
                Self::Skipped
            }
        }
    }

    /// For what cannot be done anywhere, whatever the environment requires.
    fn limited(what: &str, limit: &str) -> Self {
        println!("SKIP {what}: {limit}");
        Self::Skipped
    }

    /// Both must be open; why this one is not counts first.
    fn and(&self, other: &Self) -> Self {
        match self {
            Self::Open => other.clone(),
            Self::Skipped | Self::Failing(_) => self.clone(),
        }
    }

    fn trial(&self, backend: Backend, name: &str, test: fn(Backend)) -> Trial {
        self.trial_of(format!("{}::{name}", backend.word()), move || test(backend))
    }

    fn trial_of(&self, name: String, test: impl FnOnce() + Send + 'static) -> Trial {
        let failure = match self {
            Self::Open | Self::Skipped => None,
            Self::Failing(obstacle) => Some(obstacle.clone()),
        };
        let act = move || match failure {
            Some(obstacle) => Err(Failed::from(obstacle)),
            None => {
                test();
                Ok(())
            }
        };
        Trial::test(name, act).with_ignored_flag(matches!(self, Self::Skipped))
    }
}
