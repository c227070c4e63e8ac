//! The command line: options, and which verb they go to.

mod interface;
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
    command::{
        delete, host, inject, interface as interface_verb, join, list, part, set, take, wait, watch,
    },
    frontend::device,
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
    Interface(interface_verb::Args),
    Delete(delete::Args),
    Join(join::Args),
    Host(host::Args),
    Part(part::Args),
}

/// Who may attach to a tunnel; an option of all that serve a device.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Admission {
    /// Refuse TUNSETIFF with EPERM where the kernel does: making a tunnel takes CAP_NET_ADMIN, attaching to one that is there
    /// takes that or to be its owner (TUNSETOWNER) and in its group (TUNSETGROUP), as far as they are set.
    #[arg(long)]
    require_net_admin: bool,
}

impl From<Admission> for device::Admission {
    fn from(Admission { require_net_admin }: Admission) -> Self {
        if require_net_admin { Self::NetAdmin } else { Self::Everybody }
    }
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
            | Verb::Set(_)
            | Verb::Interface(_)
            | Verb::Delete(_)
            | Verb::Join(_)
            | Verb::Host(_)
            | Verb::Part(_) => "info",
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
            Verb::Interface(args) => args.run(&mut connect()?)?,
            Verb::Delete(args) => args.run(&mut connect()?)?,
            Verb::Join(args) => args.run(&mut connect()?)?,
            Verb::Host(args) => args.run(&mut connect()?, out)?,
            Verb::Part(args) => args.run(&mut connect()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
