//! The `memtun` program: parses, dispatches, prints what went wrong.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use memtun::{
    cli::{Cli, VerbError},
    log,
};

fn main() -> ExitCode {
    let (cli, filter) = Cli::parse_or_exit();
    log::start(filter);
    let mut out = io::stdout().lock();
    let executed = cli.execute(&mut out);
    let status = match executed
        .and_then(|status| Ok(out.flush().map(|()| status).map_err(VerbError::Output)?))
    {
        Ok(status) => status,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Each message holds its cause, for what to do comes after it.
            log::complain(&error);
            ExitCode::FAILURE
        }
    };
    log::finish();
    status
}

/// The reader of our output has had enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
