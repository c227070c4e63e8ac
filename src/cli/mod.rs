//! The command line: options, and which verb they go to.

mod run;
mod serve;

use std::{io::Write, path::PathBuf, process::ExitCode};

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
    /// Path of the daemon's control socket.
    #[arg(long, global = true, env = "MEMTUN_CONTROL", value_name = "PATH", default_value = DEFAULT_CONTROL)]
    control: PathBuf,
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
    /// Runs the verb; what it has to say goes to `out`.
    ///
    /// # Errors
    ///
    /// What the verb says; the caller prints it and ends with status 1.
    pub fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let connect = || Client::connect(&self.control);
        match self.verb {
            Verb::Serve(args) => args.run(self.control)?,
            Verb::Run(args) => return Ok(args.run(&self.control)),
            Verb::List(args) => args.run(&mut connect()?, out)?,
            Verb::Inject(args) => args.run(&mut connect()?, out)?,
            Verb::Take(args) => args.run(&mut connect()?, out)?,
            Verb::Wait(args) => args.run(&self.control, out)?,
            Verb::Watch(args) => args.run(&mut connect()?, out)?,
            Verb::Set(args) => args.run(&mut connect()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
