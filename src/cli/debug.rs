//! `memtun debug`: for whoever looks for a fault of memtun itself.

mod replay_log;

use std::process::ExitCode;

use clap::Subcommand;

use super::Scene;

/// Looks for faults of memtun itself.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    ReplayLog(replay_log::Args),
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or standard output not be written.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> anyhow::Result<ExitCode> {
        match self.what {
            What::ReplayLog(args) => args.run(scene.out),
        }
    }
}
