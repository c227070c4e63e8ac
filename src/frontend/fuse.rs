//! A single file by `/dev/fuse`, where there is no CUSE.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cuse_rs::fuse_file::{FileOptions, Mount, MountError};
use nix::{errno::Errno, sys::statfs::statfs};
use tracing::{info, warn};

use super::{Registered, device::Identity};
use crate::{
    mounts::{self, open_path},
    sys,
};

/// What the list of mounts calls it, after `fuse.`.
const FILE_SYSTEM: &str = "memtun";
/// With it.
pub(super) const MOUNT_KIND: &str = "fuse.memtun";

/// How long a daemon may take to say that it lives.
const PATIENCE: Duration = Duration::from_secs(1);

/// Mounts the file.
///
/// # Errors
///
/// As [`MountError`] says.
pub(crate) fn mount(options: FileOptions) -> Result<Registered, MountError> {
    let mount = options.name(FILE_SYSTEM).mount()?;
    info!(file = %mount.path().display(), "mounted");
    Ok(Registered::device(
        mount.path().display().to_string(),
        Some(mount.path().to_owned()),
        &Arc::clone(mount.channel()),
        Identity::FileSystem(file_system_at(mount.path()).unwrap_or_default()),
        Box::new(move || stop(&mount)),
    ))
}

/// Why a file cannot be mounted at a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Occupied {
    /// Another daemon has its file there.
    #[error("{0} is served by another daemon; stop that one, or give another path with --fuse")]
    Served(PathBuf),
    /// So does one that does not answer.
    #[error(
        "{0} is served by another process, which does not answer; end that one, or give another path with --fuse"
    )]
    Silent(PathBuf),
    /// Nobody can be asked.
    #[error("asking who serves {path}: {error}")]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Makes sure that no living daemon serves the file at a path. The mount of one that has ended may be replaced. To be called
/// while there is one thread.
///
/// # Errors
///
/// As [`Occupied`] says.
pub(crate) fn admit(path: &Path) -> Result<(), Occupied> {
    let Some(kind) = kind_at(path).filter(|kind| kind.starts_with("fuse")) else { return Ok(()) };
    match is_alive(path) {
        Ok(Some(true)) if kind == MOUNT_KIND => Err(Occupied::Served(path.to_owned())),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Occupied::Silent(path.to_owned())),
        Err(error) => Err(Occupied::Unknown { path: path.to_owned(), error }),
    }
}

/// The type of the file system at a path.
fn kind_at(path: &Path) -> Option<String> {
    mounts::Mount::of(&open_path(path).ok()?).map(|mount| mount.kind)
}

/// Whether the server of the file system at a path lives; `None`: it does not answer. A process that waits for a server that hangs
/// cannot be interrupted, so it is a child that asks.
fn is_alive(path: &Path) -> io::Result<Option<bool>> {
    sys::ask_in_a_child(PATIENCE, || {
        // The kernel would answer `stat` from attributes that it keeps.
        let asked = statfs(path);
        u8::from(!matches!(asked, Err(Errno::ENOTCONN | Errno::ECONNABORTED)))
    })
    .map(|answer| answer.map(|alive| alive != 0))
}

/// The number of the file system at a path, as `st_dev`. The file itself answers only once it is served.
fn file_system_at(path: &Path) -> Option<u64> {
    sys::FileKind::of(open_path(path).ok()?.as_fd()).ok().map(|kind| kind.file_system)
}

fn stop(mount: &Mount) -> bool {
    match mount.stop() {
        Ok(()) => true,
        // The end of the process ends the connection just as well.
        Err(error) => {
            warn!(%error, "unmounting the file failed, ignoring");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn file_system_at_a_path_is_found() {
        let proc = Path::new("/proc/self/status");
        assert_eq!(file_system_at(proc), Some(fs::metadata(proc).unwrap().dev()));
        assert_eq!(kind_at(proc).as_deref(), Some("proc"));
        let nothing = Path::new("/proc/no-such-file");
        assert_eq!((file_system_at(nothing), kind_at(nothing)), (None, None));
        assert!(admit(proc).is_ok() && admit(nothing).is_ok());
    }
}
