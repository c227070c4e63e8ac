//! The command line: options, and which verb they go to.

mod run;
mod serve;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    client::Client,
    command::{inject, list, set, take, wait, watch},
};

/// Where the control socket is unless it is said.
pub const DEFAULT_CONTROL: &str = "/run/memtun/control";

/// An in-memory /dev/net/tun: test any unmodified tun client.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// Path of the daemon's control socket [default: /run/memtun/control; of 'run': one in the folder for temporary files].
    #[arg(long, global = true, env = "MEMTUN_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::Args),
    Run(run::Args),
    List(list::Args),
    Inject(inject::Args),
    Take(take::Args),
    Wait(wait::Args),
    Watch(watch::Args),
    Set(set::Args),
}

impl Cli {
    /// What is logged unless `$MEMTUN_LOG` says otherwise.
    #[must_use]
    pub fn default_log(&self) -> &'static str {
        match self.verb {
            // Standard error is the program's: nothing but which front end was chosen, and what goes wrong.
            Verb::Run(_) => "warn,memtun::cli=info",
            Verb::Serve(_)
            | Verb::List(_)
            | Verb::Inject(_)
            | Verb::Take(_)
            | Verb::Wait(_)
            | Verb::Watch(_)
            | Verb::Set(_) => "info",
        }
    }

    /// Runs the verb; what it has to say goes to `out`.
    ///
    /// # Errors
    ///
    /// What the verb says; the caller prints it and ends with status 1.
    pub fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let control = self.control.as_deref().unwrap_or(Path::new(DEFAULT_CONTROL));
        let connect = || Client::connect(control);
        match self.verb {
            Verb::Serve(args) => args.run(control)?,
            Verb::Run(args) => return Ok(args.run(self.control.as_deref())),
            Verb::List(args) => args.run(&mut connect()?, out)?,
            Verb::Inject(args) => args.run(&mut connect()?, out)?,
            Verb::Take(args) => args.run(&mut connect()?, out)?,
            Verb::Wait(args) => args.run(control, out)?,
            Verb::Watch(args) => args.run(&mut connect()?, out)?,
            Verb::Set(args) => args.run(&mut connect()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
