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
mod cli;
mod clients;
mod conformance;
mod control;
mod device;
mod differences;
mod layering;
mod native;
mod offload;
mod peers;
mod run;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::support::daemon::Backend;

/// A test of the device: its name, and what it does with a kind of device.
pub type DeviceTest = (&'static str, fn(Backend));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = [
        ("bpf", bpf::TESTS),
        ("cli", cli::TESTS),
        ("layering", layering::TESTS),
        ("differences", differences::TESTS),
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
    trials.extend(Backend::ALL.iter().flat_map(|backend| device_trials(*backend)));
    for user in run::User::ALL {
        let gate = Gate::new(user.word(), "run", user.obstacle());
        trials.extend(run::TESTS.into_iter().flatten().map(|(name, test)| {
            let test = *test;
            gate.trial_of(format!("run::{}::{name}", user.word()), move || test(*user))
        }));
    }
    let kernel = Gate::new("native", native::WORD, support::kernel::obstacle());
    trials.extend(native::TESTS.iter().map(|(name, test)| {
        let test = *test;
        kernel.trial_of(format!("native::{name}"), test)
    }));
    let kernel = Gate::new("conformance", native::WORD, conformance::kernel_obstacle());
    trials.extend(conformance::KERNEL_TESTS.iter().map(|(name, test)| {
        let test = *test;
        kernel.trial_of(format!("conformance::{name}"), test)
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn device_trials(backend: Backend) -> Vec<Trial> {
    let kind = Gate::new(backend.word(), backend.word(), backend.obstacle());
    let tests = [device::TESTS, control::TESTS, offload::TESTS, abi::TESTS];
    let tests = tests.iter().chain(peers::TESTS).copied().flatten();
    let of_clients = clients::TESTS.iter().map(|client| {
        let gate = match &kind {
            Gate::Open => match client.limit(backend) {
                None => Gate::new(client.name, clients::WORD, client.obstacle()),
                Some(limit) => {
                    println!("SKIP {}::{}: {limit}", backend.word(), client.name);
                    Gate::Skipped
                }
            },
            Gate::Skipped | Gate::Failing(_) => kind.clone(),
        };
        gate.trial(backend, client.name, client.run)
    });
    tests.map(|(name, test)| kind.trial(backend, name, *test)).chain(of_clients).collect()
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
