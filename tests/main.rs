//! Tests against the real thing: the program, its device, and what stands around them.
//!
//! A test of the device runs once for each kind of device, as `cuse::NAME`. A kind that cannot be had here is shown as
//! ignored, with a line that says why; `MEMTUN_TEST_REQUIRE=cuse` makes that a failure, so that a run that is meant to
//! test a kind cannot pass without it.

#![allow(unreachable_pub, reason = "nothing is reachable from outside a test program")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic and print"
)]

mod cli;
mod control;
mod device;
mod layering;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::support::daemon::Backend;

/// A test of the device: its name, and what it does with a kind of device.
pub type DeviceTest = (&'static str, fn(Backend));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = [("cli", cli::TESTS), ("layering", layering::TESTS)]
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
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn device_trials(backend: Backend) -> Vec<Trial> {
    let required = std::env::var("MEMTUN_TEST_REQUIRE")
        .is_ok_and(|kinds| kinds.split(',').any(|kind| kind == backend.word()));
    let obstacle = backend.obstacle();
    if let Some(obstacle) = &obstacle
        && !required
    {
        println!("SKIP {}: {obstacle}", backend.word());
    }
    let tests = [device::TESTS, control::TESTS].into_iter().flatten();
    tests
        .map(|(name, test)| {
            let obstacle = obstacle.clone();
            let skipped = obstacle.is_some() && !required;
            let act = move || match obstacle {
                Some(obstacle) => Err(Failed::from(obstacle)),
                None => {
                    test(backend);
                    Ok(())
                }
            };
            Trial::test(format!("{}::{name}", backend.word()), act).with_ignored_flag(skipped)
        })
        .collect()
}
