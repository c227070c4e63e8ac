//! The command line: options, and which verb they go to.

mod delete;
mod error;
mod host;
mod inject;
mod interface;
mod join;
mod limits;
mod list;
mod part;
mod run;
mod serve;
mod set;
mod take;
mod vnet;
mod wait;
mod watch;

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use memtun_client::Client;
use tracing::level_filters::LevelFilter;

pub use self::error::VerbError;
use crate::{
    core::{self, Bound, NamePattern},
    log::{self, Filter},
    terminal::{self, Styles},
};

/// Where the control socket is unless it is said.
pub const DEFAULT_CONTROL: &str = "/run/memtun/control";

const ENVIRONMENT: &str = "\
Environment:
  MEMTUN_CONTROL
          Default of --control. 'memtun run' sets it for its program
  MEMTUN_LOG
          What memtun logs, unless -q or -v is given: off, error, warn, info, debug or trace; or levels for parts of memtun, such as warn,memtun::control=debug
  NO_COLOR
          Print no colors on a terminal. TERM=dumb does the same";

/// An in-memory /dev/net/tun: test any unmodified tun client.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = ENVIRONMENT)]
pub struct Cli {
    /// Path of the daemon's control socket [default: /run/memtun/control; for 'run', a path in the folder for temporary files].
    #[arg(long, global = true, env = "MEMTUN_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    verb: Verb,
}

/// How much memtun prints and logs.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Verbosity {
    /// Do not report success, and log errors only.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log more. -vv and -vvv log still more. MEMTUN_LOG chooses in detail, such as MEMTUN_LOG=warn,memtun::control=debug.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Verbosity {
    /// What to log. An option overrides the variable, and the variable overrides what is usual for the verb.
    fn filter(self, usual: LevelFilter, variable: Option<&OsStr>) -> Result<Filter, clap::Error> {
        const LEVELS: [LevelFilter; 5] = [
            LevelFilter::ERROR,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
        ];
        match (self, variable) {
            (Self { quiet: true, verbose: 1.. }, _) => {
                Err(usage_error("--quiet and --verbose exclude each other"))
            }
            (Self { quiet: true, .. }, _) => Ok(LevelFilter::ERROR.into()),
            (Self { verbose: 0, .. }, Some(text)) => {
                let text = terminal::text_of(text.as_bytes());
                text.parse()
                    .map_err(|error| usage_error(format_args!("{}: {error}", log::VARIABLE)))
            }
            (Self { verbose, .. }, _) => {
                let from = LEVELS.iter().position(|level| *level == usual).unwrap_or_default();
                let level = LEVELS.get(from + usize::from(verbose));
                Ok(level.copied().unwrap_or(LevelFilter::TRACE).into())
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::Args),
    Run(run::Args),
    List(list::Args),
    Limits(limits::Args),
    Inject(inject::Args),
    Take(take::Args),
    Wait(wait::Args),
    Watch(watch::Args),
    Set(set::Args),
    Interface(interface::Args),
    Delete(delete::Args),
    Join(join::Args),
    Host(host::Args),
    Part(part::Args),
}

/// Who may make tunnels; options of all that serve a device.
#[derive(Clone, Debug, clap::Args)]
struct Admission {
    /// Refuse TUNSETIFF with EPERM where the kernel does [default for 'serve --interface']. To make a tunnel, a client needs
    /// CAP_NET_ADMIN in the user namespace that owns the client's network namespace. The same right lets it attach to
    /// any existing tunnel. Without the right it must be the tunnel's owner (TUNSETOWNER) and in its group (TUNSETGROUP), if set.
    #[arg(long)]
    require_net_admin: bool,
    /// Make tunnels and their network devices also for clients without CAP_NET_ADMIN [default, except for 'serve
    /// --interface']. The kernel still decides which network devices a client may attach to.
    #[arg(long, conflicts_with = "require_net_admin")]
    allow_unprivileged: bool,
    /// The names that clients without CAP_NET_ADMIN may use. * stands for any characters. Any other name gets EPERM.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "*",
        requires = "allow_unprivileged"
    )]
    names: Vec<NamePattern>,
}

impl Admission {
    /// What it comes to, where clients may have less rights than the daemon or not.
    fn resolve(self, is_strict: bool) -> core::Admission {
        if self.require_net_admin || is_strict && !self.allow_unprivileged {
            core::Admission::NetAdmin
        } else {
            core::Admission::Names(self.names)
        }
    }
}

/// How much memory there may be; options of all that serve a device.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Memory {
    /// How much memory tunnels, datagrams and waiting events may take, in bytes or with K, M or G. Beyond it memtun drops
    /// datagrams, and TUNSETIFF gets ENOMEM.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    memory: usize,
    /// How much of this memory one user may take [default: a quarter].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_per_user: Option<usize>,
}

impl From<Memory> for Bound {
    fn from(Memory { memory, memory_per_user }: Memory) -> Self {
        let user = memory_per_user.map_or(Self::shared(memory).user, |user| user.min(memory));
        Self { all: memory, user }
    }
}

/// Less would not do for a single client.
const LEAST_MEMORY: usize = 1 << 20;

/// A number of bytes.
fn size(text: &str) -> Result<usize, String> {
    let (number, shift) = match text.as_bytes() {
        [.., b'K' | b'k'] => (&text[..text.len() - 1], 10),
        [.., b'M' | b'm'] => (&text[..text.len() - 1], 20),
        [.., b'G' | b'g'] => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or_else(|| format!("{text:?} is not a size; write it as 256M or 1G"))?;
    if bytes < LEAST_MEMORY {
        Err(format!("{text:?} is too little; give 1M or more"))
    } else {
        Ok(bytes)
    }
}

impl Cli {
    /// The command line, and what is to be logged. Ends the process after help, and after a usage error with status 2.
    #[must_use]
    pub fn parse_or_exit() -> (Self, Filter) {
        let mut command = Self::command();
        if terminal::is_dumb() {
            command = command.color(clap::ColorChoice::Never);
        }
        let parsed = command.try_get_matches_from_mut(std::env::args_os());
        parsed.and_then(|matches| Self::checked(&matches)).unwrap_or_else(|error| {
            with_usage(error, command).exit();
        })
    }

    /// Whether values fit together is beyond clap's own rules.
    fn checked(matches: &ArgMatches) -> Result<(Self, Filter), clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        match &mut cli.verb {
            Verb::Inject(args) => args.check()?,
            Verb::Join(args) => args.check()?,
            Verb::Host(args) => args.check()?,
            Verb::Serve(_)
            | Verb::Run(_)
            | Verb::List(_)
            | Verb::Limits(_)
            | Verb::Take(_)
            | Verb::Wait(_)
            | Verb::Watch(_)
            | Verb::Set(_)
            | Verb::Interface(_)
            | Verb::Delete(_)
            | Verb::Part(_) => {}
        }
        let variable = std::env::var_os(log::VARIABLE).filter(|text| !text.is_empty());
        let filter = cli.verbosity.filter(cli.usual_log(), variable.as_deref())?;
        Ok((cli, filter))
    }

    fn usual_log(&self) -> LevelFilter {
        match self.verb {
            Verb::Serve(_) => LevelFilter::INFO,
            // Standard error is the program's, or a shell's.
            Verb::Run(_)
            | Verb::List(_)
            | Verb::Limits(_)
            | Verb::Inject(_)
            | Verb::Take(_)
            | Verb::Wait(_)
            | Verb::Watch(_)
            | Verb::Set(_)
            | Verb::Interface(_)
            | Verb::Delete(_)
            | Verb::Join(_)
            | Verb::Host(_)
            | Verb::Part(_) => LevelFilter::WARN,
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
        let mut nobody = io::sink();
        let report: &mut dyn Write = if self.verbosity.quiet { &mut nobody } else { &mut *out };
        match self.verb {
            Verb::Serve(args) => args.run(control)?,
            Verb::Run(args) => return Ok(args.run(self.control.as_deref())),
            Verb::List(args) => args.run(&mut connect()?, out, Styles::of(&io::stdout()))?,
            Verb::Limits(args) => args.run(&mut connect()?, out, Styles::of(&io::stdout()))?,
            Verb::Inject(args) => args.run(&mut connect()?, report)?,
            Verb::Take(args) => args.run(&mut connect()?, out)?,
            Verb::Wait(args) => args.run(control, report)?,
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

/// Values that are right each by itself and do not fit together.
fn usage_error(message: impl fmt::Display) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, message)
}

/// A time on the command line. Only options that take a word with a hyphen get to see a negative one.
fn duration(text: &str) -> Result<humantime::Duration, String> {
    text.parse().map_err(|error| {
        if text.starts_with('-') {
            "a time cannot be negative; give one such as 500ms or 2s".to_owned()
        } else {
            format!("{error}; give a number and a unit, such as 500ms or 2s")
        }
    })
}

/// A usage error shows how the verb is used, whoever found it. clap leaves that out where a value is wrong.
fn with_usage(error: clap::Error, mut command: Command) -> clap::Error {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return error;
    }
    command.build();
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(std::env::args_os());
    let verb = lenient.ok().and_then(|matches| matches.subcommand_name().map(str::to_owned));
    let used = match verb.and_then(|verb| command.find_subcommand_mut(verb)) {
        Some(verb) => verb,
        None => &mut command,
    };
    let usage = used.render_usage();
    let mut error = error.format(used);
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    // No verb takes a word such as '-1' where clap proposes '-- -1'.
    if let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) {
        let useful = tips.into_iter().filter(|tip| !tip.to_string().contains("as a value, use"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(useful.collect()));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_a_user_has_a_quarter() {
        assert_eq!(size("1M"), Ok(1 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("1024k"), Ok(1 << 20));
        assert_eq!(size("2000000"), Ok(2_000_000));
        let bad = ["1T", "M", "", "99999999999G"].map(|text| (text, "256M"));
        for (text, hint) in bad.into_iter().chain([("1", "1M or more")]) {
            assert!(size(text).unwrap_err().contains(hint), "{text}");
        }
        let bound = |memory, memory_per_user| Bound::from(Memory { memory, memory_per_user });
        assert_eq!(bound(256, None), Bound { all: 256, user: 64 });
        assert_eq!(bound(256, Some(300)), Bound { all: 256, user: 256 });
    }
}
