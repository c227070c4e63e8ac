//! The command line: options, and which verb they go to.

mod debug;
mod delete;
mod doctor;
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
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{ExitCode, Termination},
    str::FromStr,
};

use clap::{
    ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use memtun_client::{Client, ClientError};
use tracing::level_filters::LevelFilter;

pub use self::error::VerbError;
use crate::{
    core::{self, Bound, NamePattern},
    log::{self, Filter},
    sys, terminal,
};

/// Where the control socket is unless it is said.
pub const DEFAULT_CONTROL: &str = "/run/memtun/control";

const ALL_VERBS: &str = "Options of all verbs";

const ENVIRONMENT: &str = "\
Environment:
  MEMTUN_CONTROL
          Default of --control. 'memtun run' sets it for its program. If a daemon has that socket already, 'run' makes another
  MEMTUN_LOG
          What memtun logs, unless -q or -v is given: off, error, warn, info, debug or trace; or levels for parts of memtun, such as warn,memtun::control=debug
  MEMTUN_LOG_INPUTS
          For 'serve' and 'run': a file to create and fill with all that reaches the core. 'memtun debug replay-log' replays it
  NO_COLOR
          Print no colors on a terminal. TERM=dumb does the same";

/// An in-memory /dev/net/tun: test any unmodified tun client.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = ENVIRONMENT)]
pub struct Cli {
    /// Path of the daemon's control socket [default: /run/memtun/control; for 'run', a path in the folder for temporary files].
    #[arg(long, global = true, help_heading = ALL_VERBS, env = "MEMTUN_CONTROL", value_name = "PATH", value_parser = OsStringValueParser::new().try_map(control))]
    control: Option<PathBuf>,
    /// The path of the control socket is an option's, not the variable's.
    #[arg(skip)]
    is_control_said: bool,
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    verb: Verb,
}

/// How much memtun prints and logs.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Verbosity {
    /// Do not report success, and log errors only. Results are printed all the same.
    #[arg(short, long, global = true, help_heading = ALL_VERBS)]
    quiet: bool,
    /// Log more. -vv and -vvv log still more. MEMTUN_LOG chooses in detail, such as MEMTUN_LOG=warn,memtun::control=debug.
    #[arg(short, long, global = true, help_heading = ALL_VERBS, action = clap::ArgAction::Count)]
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

/// The verbs: each in a module that has its options, what is logged unless somebody chooses, and what checks whether values fit
/// together, which is beyond clap's own rules.
macro_rules! verbs {
    ($($verb:ident($module:ident), logs $level:ident $(, checked by $check:ident)?;)*) => {
        #[derive(Debug, Subcommand)]
        enum Verb {
            $($verb($module::Args),)*
        }

        impl Verb {
            fn usual_log(&self) -> LevelFilter {
                match self {
                    $(Self::$verb(_) => LevelFilter::$level,)*
                }
            }

            fn check(&mut self) -> Result<(), clap::Error> {
                match self {
                    $(Self::$verb(_args) => { $(_args.$check()?;)? })*
                }
                Ok(())
            }

            fn run(self, scene: &mut Scene<'_>) -> anyhow::Result<ExitCode> {
                Ok(match self {
                    $(Self::$verb(args) => args.run(scene)?.report(),)*
                })
            }
        }
    };
}

// All but the daemon share standard error with a shell, or with a program.
verbs! {
    Serve(serve), logs INFO, checked by check;
    Run(run), logs WARN, checked by check;
    List(list), logs WARN;
    Limits(limits), logs WARN;
    Inject(inject), logs WARN, checked by check;
    Take(take), logs WARN;
    Wait(wait), logs WARN;
    Watch(watch), logs WARN;
    Set(set), logs WARN;
    Interface(interface), logs WARN;
    Delete(delete), logs WARN;
    Join(join), logs WARN, checked by check;
    Host(host), logs WARN, checked by check;
    Part(part), logs WARN;
    Doctor(doctor), logs WARN;
    Debug(debug), logs WARN;
}

/// What a verb works with.
struct Scene<'a> {
    control: Option<PathBuf>,
    is_control_said: bool,
    is_quiet: bool,
    out: &'a mut dyn Write,
    nobody: io::Sink,
}

impl Scene<'_> {
    /// Where the control socket is.
    fn control(&self) -> &Path {
        self.control.as_deref().unwrap_or(Path::new(DEFAULT_CONTROL))
    }

    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(self.control())
    }

    /// Where success is reported.
    fn report(&mut self) -> &mut dyn Write {
        if self.is_quiet { &mut self.nobody } else { self.out }
    }
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
    /// The names that clients without CAP_NET_ADMIN may use [default: *]. * stands for any characters. Any other name gets EPERM.
    /// With 'serve --interface', this also needs --allow-unprivileged.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "require_net_admin")]
    names: Option<Vec<NamePattern>>,
}

impl Admission {
    /// Whether the options have an effect; `is_strict`: clients may have less rights than the daemon.
    fn check(&self, is_strict: bool) -> Result<(), clap::Error> {
        if self.names.is_some() && is_strict && !self.allow_unprivileged {
            return Err(usage_error(
                "with --interface, clients without CAP_NET_ADMIN may use no names; give --allow-unprivileged with --names",
            ));
        }
        Ok(())
    }

    /// What it comes to.
    fn resolve(self, is_strict: bool) -> core::Admission {
        if self.require_net_admin || is_strict && !self.allow_unprivileged {
            core::Admission::NetAdmin
        } else {
            core::Admission::Names(self.names.unwrap_or_else(|| vec![NamePattern::any()]))
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

impl Memory {
    fn check(self) -> Result<(), clap::Error> {
        if self.memory_per_user.is_some_and(|user| user > self.memory) {
            return Err(usage_error(
                "one user cannot take more memory than all; give --memory-per-user at most what --memory is",
            ));
        }
        Ok(())
    }
}

impl From<Memory> for Bound {
    fn from(Memory { memory, memory_per_user }: Memory) -> Self {
        Self { all: memory, user: memory_per_user.unwrap_or(Self::shared(memory).user) }
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
        sys::inherited::note();
        let mut command = Self::command();
        if terminal::is_dumb() {
            command = command.color(clap::ColorChoice::Never);
        }
        let parsed = command.try_get_matches_from_mut(std::env::args_os());
        parsed.and_then(|matches| Self::checked(&matches)).unwrap_or_else(|error| {
            let error = with_usage(error, command);
            // clap's own exit does not look whether it could be written.
            let printed = error.print().and_then(|()| io::stdout().flush());
            let status = match printed {
                Err(failed)
                    if !error.use_stderr() && failed.kind() != io::ErrorKind::BrokenPipe =>
                {
                    log::complain(&VerbError::Output(failed));
                    1
                }
                _ => error.exit_code(),
            };
            std::process::exit(status);
        })
    }

    fn checked(matches: &ArgMatches) -> Result<(Self, Filter), clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        cli.is_control_said = matches.value_source("control") == Some(ValueSource::CommandLine);
        cli.verb.check()?;
        let variable = std::env::var_os(log::VARIABLE).filter(|text| !text.is_empty());
        let filter = cli.verbosity.filter(cli.verb.usual_log(), variable.as_deref())?;
        Ok((cli, filter))
    }

    /// Runs the verb; what it has to say goes to `out`.
    ///
    /// # Errors
    ///
    /// What the verb says; the caller prints it and ends with status 1.
    pub fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let Self { control, is_control_said, verbosity, verb } = self;
        let is_quiet = verbosity.quiet;
        verb.run(&mut Scene { control, is_control_said, is_quiet, out, nobody: io::sink() })
    }
}

/// Values that are right each by itself and do not fit together.
fn usage_error(message: impl fmt::Display) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, message)
}

fn control(text: OsString) -> Result<PathBuf, &'static str> {
    match text.is_empty() {
        true => Err("give the path of a socket; if MEMTUN_CONTROL is empty, unset it"),
        false => Ok(text.into()),
    }
}

/// A whole number on the command line.
fn number<N>(least: N, most: N) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + fmt::Display + Copy,
{
    move |text| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("give a number from {least} to {most}"))
    }
}

/// A time on the command line. Only options that take a word with a hyphen get to see a negative one.
fn duration(text: &str) -> Result<humantime::Duration, &'static str> {
    text.parse().map_err(|_| {
        if text.starts_with('-') {
            "a time cannot be negative; give one such as 500ms or 2s"
        } else {
            "give a number and a unit, such as 500ms or 2s"
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
        assert_eq!(bound(256, Some(100)), Bound { all: 256, user: 100 });
        let check = |user| Memory { memory: 256, memory_per_user: Some(user) }.check();
        assert!(check(256).is_ok() && check(257).is_err());
    }
}
