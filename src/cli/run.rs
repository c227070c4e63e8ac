//! `run`: a program that finds the device at `/dev/net/tun`, and nobody else does.
//!
//! The program takes the place of this process, so its signals, its terminal and its exit status are its own.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// memtun itself failed.
const FAILED: u8 = 125;
/// The program could not be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
const NOT_FOUND: u8 = 127;

/// Runs a program that finds the device of a running daemon at /dev/net/tun, in a mount namespace of its own.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: the program's; 125 if memtun failed, 126 if the program could not be executed, \
    127 if it was not found."
)]
pub(super) struct Args {
    /// The daemon's device, such as /dev/memtun.
    #[arg(long = "use", value_name = "DEVICE")]
    device: PathBuf,
    /// The path at which the program finds it.
    #[arg(long, value_name = "PATH", default_value = "/dev/net/tun")]
    at: PathBuf,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl Args {
    pub(super) fn run(self, control: &Path) -> ExitCode {
        if let Err(error) = self.cover() {
            return fail(FAILED, &format!("{error}"));
        }
        let (program, arguments) =
            self.program.split_first().unwrap_or_else(|| unreachable!("clap requires a program"));
        let error = Command::new(program).args(arguments).env("MEMTUN_CONTROL", control).exec();
        let status =
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        fail(status, &format!("running {}: {error}", program.display()))
    }

    /// Covers the path with the device, in a mount namespace of this process.
    fn cover(&self) -> Result<(), CoverError> {
        let at = &self.at;
        if !self.device.exists() {
            return Err(CoverError::NoDevice(self.device.clone()));
        }
        if !at.exists() {
            return Err(CoverError::NothingToCover(at.clone()));
        }
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| CoverError::Namespace(errno.into()))?;
        let none: Option<&str> = None;
        // Else the mount would show up in the namespace this one was made from.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|errno| CoverError::Namespace(errno.into()))?;
        mount(Some(&self.device), at, none, MsFlags::MS_BIND, none).map_err(|errno| {
            CoverError::Mount { device: self.device.clone(), at: at.clone(), source: errno.into() }
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum CoverError {
    #[error("there is no device {0}; start 'memtun serve', and give its device with --use")]
    NoDevice(PathBuf),
    #[error(
        "{0} does not exist, so the device cannot be mounted over it; 'touch' it, or give another path with --at"
    )]
    NothingToCover(PathBuf),
    #[error("making a mount namespace: {0}; it takes root")]
    Namespace(io::Error),
    #[error("mounting {device} over {at}: {source}")]
    Mount { device: PathBuf, at: PathBuf, source: io::Error },
}

#[expect(clippy::print_stderr, reason = "the status, not an error, goes to main")]
fn fail(status: u8, message: &str) -> ExitCode {
    eprintln!("memtun: {message}");
    ExitCode::from(status)
}
