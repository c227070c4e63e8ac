//! What front ends this machine has, and which one `run` chooses.

use std::{fmt, fs::File, io, time::Duration};

use nix::{errno::Errno, unistd::geteuid};

use crate::{
    frontend::notify::{self, NotifyError},
    namespace::{self, NamespaceError},
    sys,
};

/// How long a child may take to try.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a child answers about `/dev/fuse` is an errno beyond this.
const OF_DEVICE: u8 = 128;

/// Why there can be no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum NoFile {
    /// No namespaces to mount it in.
    Namespace(Errno),
    /// No `/dev/fuse`.
    Device(Errno),
}

impl fmt::Display for NoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(errno) => write!(
                f,
                "making namespaces: {}; run as root, or lift the rule that forbids user namespaces (a container's, AppArmor's)",
                errno.desc()
            ),
            Self::Device(errno) => write!(
                f,
                "opening /dev/fuse: {}; try 'modprobe fuse', or give the container --device /dev/fuse",
                errno.desc()
            ),
        }
    }
}

/// Whether there can be a file for a program. To be called while there is one thread.
pub(in crate::cli) fn file(options: namespace::Options) -> io::Result<Result<(), NoFile>> {
    let answer = sys::ask_in_a_child(PATIENCE, || {
        let number = |errno: Errno| u8::try_from(errno as i32).unwrap_or(1);
        if let Err(error) = namespace::enter(options) {
            return number(errno_of(&error));
        }
        match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(_) => 0,
            Err(error) => OF_DEVICE | number(Errno::from_raw(error.raw_os_error().unwrap_or(1))),
        }
    })?;
    Ok(match answer {
        Some(0) => Ok(()),
        Some(device) if device >= OF_DEVICE => {
            Err(NoFile::Device(Errno::from_raw((device & !OF_DEVICE).into())))
        }
        Some(namespace) => Err(NoFile::Namespace(Errno::from_raw(namespace.into()))),
        None => Err(NoFile::Namespace(Errno::ETIMEDOUT)),
    })
}

fn errno_of(error: &NamespaceError) -> Errno {
    let of = |error: &io::Error| error.raw_os_error().map_or(Errno::EPERM, Errno::from_raw);
    match error {
        NamespaceError::User(errno)
        | NamespaceError::Unshare { errno, .. }
        | NamespaceError::Mount { errno, .. } => *errno,
        NamespaceError::Map { error, .. } | NamespaceError::Compose { error, .. } => of(error),
        NamespaceError::NoFolder(_) => Errno::ENOENT,
    }
}

/// Why there can be no character device for a program.
pub(in crate::cli) fn character_device() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("only root can register one; run as root".to_owned());
    }
    let opened = File::options().read(true).write(true).open("/dev/cuse");
    opened.map(drop).map_err(|error| {
        let error = Errno::from_raw(error.raw_os_error().unwrap_or(1));
        format!("opening /dev/cuse: {}; try 'modprobe cuse'", error.desc())
    })
}

/// Why there can be no notifications. To be called while there is one thread.
pub(in crate::cli) fn notifications() -> Result<(), NotifyError> {
    notify::probe()
}
