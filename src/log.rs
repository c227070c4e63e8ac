//! The log: which lines, and how they look.
//!
//! A line goes to standard error, with time and level. In the journal, which adds the time, it has a priority instead, as
//! `sd-daemon(3)` describes. A client may have chosen what a field holds, so each field passes through `terminal`. The module
//! `writer` brings lines to standard error, and limits how many.

mod writer;

use std::{fmt, io, os::unix::fs::MetadataExt, str::FromStr};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

pub use self::writer::{finish, say, start_thread};
use crate::terminal::{self, Styles};

/// The variable that says what is logged.
pub const VARIABLE: &str = "MEMTUN_LOG";

/// The crates that log.
const CRATES: [&str; 2] = ["memtun", "cuse_rs"];

/// What is logged: a level, or levels for parts of the program, such as `warn,memtun::control=debug`.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Targets);

impl From<LevelFilter> for Filter {
    fn from(level: LevelFilter) -> Self {
        Self(Targets::new().with_default(level))
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut targets = Targets::new();
        for directive in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (target, level) = match directive.split_once('=') {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None if is_ours(directive) => (Some(directive), "trace"),
                None => (None, directive),
            };
            let level = level.parse::<LevelFilter>().map_err(|_| {
                format!("{level:?} is not a level; the levels are off, error, warn, info, debug and trace")
            })?;
            targets = match target {
                None => targets.with_default(level),
                Some(target) if is_ours(target) => targets.with_target(target, level),
                Some(target) => {
                    return Err(format!(
                        "{target:?} is not a part of memtun; name memtun, cuse_rs or a module, as in memtun::control=debug"
                    ));
                }
            };
        }
        Ok(Self(targets))
    }
}

fn is_ours(target: &str) -> bool {
    let name = target.split("::").next();
    CRATES.into_iter().any(|ours| name == Some(ours))
}

/// Starts to log. To be called once, before anything is logged.
pub fn start(Filter(targets): Filter) {
    let line = Line { in_journal: in_journal(), styles: Styles::of(&io::stderr()) };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer::Queued).event_format(line);
    tracing_subscriber::registry().with(lines).with(targets).with(writer::Limit).init();
}

/// Says on standard error what went wrong.
pub fn complain(error: &impl fmt::Display) {
    let Styles { error: style, .. } = Styles::of(&io::stderr());
    say(format_args!("{style}memtun:{style:#} {}", terminal::escaped(&error.to_string())));
}

/// Standard error is the journal's own socket: a program that was started below a service may have the variable too, and
/// another standard error.
fn in_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// How a line looks.
struct Line {
    in_journal: bool,
    styles: Styles,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.in_journal {
            write!(writer, "<{}>", priority(level))?;
        } else {
            SystemTime.format_time(&mut writer)?;
            let style = match level {
                Level::ERROR => self.styles.error,
                Level::WARN => self.styles.warning,
                _ => anstyle::Style::new(),
            };
            write!(writer, " {style}{level:>5}{style:#} ")?;
        }
        let mut fields = Fields { writer: writer.by_ref(), first: true, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        writeln!(writer)
    }
}

/// Of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Writes the message and `name=value` for each other field.
struct Fields<'a> {
    writer: Writer<'a>,
    first: bool,
    result: fmt::Result,
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if std::mem::take(&mut self.first) { "" } else { " " };
        let value = format!("{value:?}");
        let value = terminal::escaped(&value);
        self.result = self.result.and_then(|()| match field.name() {
            "message" => write!(self.writer, "{space}{value}"),
            name => write!(self.writer, "{space}{name}={value}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn filters_are_levels_and_parts_of_the_program() {
        let enables = |text: &str, target: &str, level: Level| {
            let Filter(targets) = text.parse().unwrap();
            targets.would_enable(target, &level)
        };
        assert!(enables("debug", "memtun::hub", Level::DEBUG));
        assert!(!enables("debug", "memtun::hub", Level::TRACE));
        assert!(enables(" warn, memtun::control=debug", "memtun::control::server", Level::DEBUG));
        assert!(!enables("warn,memtun::control=debug", "memtun::hub", Level::INFO));
        assert!(enables("cuse_rs", "cuse_rs::channel", Level::TRACE));
        assert!(!enables("off", "memtun", Level::ERROR));
        for (wrong, hint) in [
            ("inof", "\"inof\" is not a level"),
            ("warn,memtun=loud", "\"loud\" is not a level"),
            ("hyper=debug", "\"hyper\" is not a part"),
            ("memtunnel=debug", "\"memtunnel\" is not a part"),
            ("memtun[span]=debug", "is not a part"),
        ] {
            let error = wrong.parse::<Filter>().unwrap_err();
            assert!(error.contains(hint), "{wrong}: {error}");
        }
    }

    /// What is logged in a line of that look.
    fn logged(in_journal: bool, log: impl FnOnce()) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let line = Line { in_journal, styles: Styles::default() };
        let writer = {
            let written = Arc::clone(&written);
            move || Sink(Arc::clone(&written))
        };
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).event_format(line);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let written = written.lock().unwrap().clone();
        String::from_utf8(written).unwrap()
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_field_cannot_do_anything_to_a_terminal_nor_begin_a_line() {
        let log = || tracing::warn!(name = %"\x1b[2J\ntun0\u{202e}", number = 5, "odd, ignoring");
        let line = logged(true, log);
        assert_eq!(line, "<4>odd, ignoring name=\\x1b[2J\\x0atun0\\u{202e} number=5\n");
        let line = logged(false, log);
        assert!(line.contains("Z  WARN odd, ignoring name="), "{line}");
    }
}
