//! The `memtun` program: parses, dispatches, prints what went wrong.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use memtun::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.default_log());
    let mut out = io::stdout().lock();
    let executed = cli.execute(&mut out);
    match executed.and_then(|status| Ok(out.flush().map(|()| status)?)) {
        Ok(status) => status,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Each message holds its cause, for what to do comes after it. If standard error is closed nobody is told.
            let _closed = writeln!(io::stderr(), "memtun: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The reader of our output has had enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// What is logged, is set by `$MEMTUN_LOG` as tracing-subscriber's `EnvFilter` describes. The journal has times of its own.
fn start_log(default: &str) {
    let filter = EnvFilter::try_from_env("MEMTUN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).init();
    } else {
        log.init();
    }
}
