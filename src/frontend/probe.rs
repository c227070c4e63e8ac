//! Checks that a path is a device of memtun before a program gets it.
//!
//! The check opens a path only if it looks like such a device: to open another device may have effects.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, major, minor},
};

use super::fuse;
use crate::{
    core::ioctl::OWN_TYPE,
    mounts::{Mount, open_path},
    sys,
};

/// The ioctl that every device of memtun's knows, on every open file; `_IO`. Carried calls have the other numbers.
pub(super) const IDENTIFY: u32 = OWN_TYPE << 8 | 2;
/// What it returns: "mt".
pub(super) const IDENTITY: i32 = 0x6d74;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a path is not to be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ProbeError {
    /// There is nothing.
    #[error("there is no device {0}; start 'memtun serve', or leave out --use")]
    Missing(PathBuf),
    /// It is something else.
    #[error("{0} is not a memtun device; give the path of one that 'memtun serve' has made")]
    Foreign(PathBuf),
    /// Its daemon has ended.
    #[error("the daemon of {0} has ended; start 'memtun serve' again")]
    Dead(PathBuf),
    /// Its daemon hangs.
    #[error("the daemon of {0} does not answer; end it, and start 'memtun serve' again")]
    Silent(PathBuf),
    /// It cannot be opened.
    #[error("opening {path}: {}; 'memtun serve --mode' and '--owner' choose who may open it", .errno.desc())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// Nobody can be asked.
    #[error("asking who serves {path}: {error}")]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Makes sure that a device is one of memtun's, and that its daemon lives. To be called while there is one thread.
///
/// # Errors
///
/// As [`ProbeError`] says.
pub(crate) fn probe(path: &Path) -> Result<(), ProbeError> {
    const FOREIGN: u8 = u8::MAX;
    const GONE: [Errno; 4] = [Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENXIO, Errno::ENODEV];
    let path = path.to_owned();
    match may_be_one(&path) {
        Ok(true) => {}
        Ok(false) => return Err(ProbeError::Foreign(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProbeError::Missing(path));
        }
        Err(error) => return Err(ProbeError::Unknown { path, error }),
    }
    let ask = || {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(file) if sys::own_ioctl(file.as_fd(), IDENTIFY, 0) == Ok(IDENTITY) => 0,
            Ok(_) => FOREIGN,
            Err(errno) => u8::try_from(errno as i32).unwrap_or(FOREIGN),
        }
    };
    match sys::ask_in_a_child(PATIENCE, ask) {
        Ok(Some(0)) => Ok(()),
        Ok(Some(FOREIGN)) => Err(ProbeError::Foreign(path)),
        Ok(Some(number)) => {
            let errno = Errno::from_raw(number.into());
            let is_gone = GONE.contains(&errno);
            Err(if is_gone { ProbeError::Dead(path) } else { ProbeError::Open { path, errno } })
        }
        Ok(None) => Err(ProbeError::Silent(path)),
        Err(error) => Err(ProbeError::Unknown { path, error }),
    }
}

/// Whether there is a file of memtun's, or a character device that a process serves. No server is asked.
fn may_be_one(path: &Path) -> io::Result<bool> {
    let there = open_path(path)?;
    let kind = Mount::of(&there).map(|mount| mount.kind).unwrap_or_default();
    if kind.starts_with("fuse") {
        return Ok(kind == fuse::MOUNT_KIND);
    }
    let metadata = there.metadata()?;
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    let class = fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    // A number that nobody has is that of a node whose daemon has ended; without /sys nobody knows.
    let is_served = class.is_ok_and(|class| class.ends_with("cuse"));
    let is_free = !Path::new(&format!("/sys/dev/char/{major}:{minor}")).exists();
    Ok(metadata.file_type().is_char_device() && (is_served || is_free))
}
