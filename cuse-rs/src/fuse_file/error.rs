//! Why a file could not be mounted or taken away: what an operator reads.
//!
//! Each message is one line that names the thing and says what to do about it.

use std::io;
use std::path::PathBuf;

use crate::errno::Errno;
use crate::handshake::HandshakeError;

/// Why a file could not be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// `/dev/fuse` cannot be opened: the module is not there, or the caller may not.
    #[error("opening /dev/fuse: {}{}", .errno.description(), open_hint(*.errno))]
    Open {
        /// The error of `open(2)`.
        errno: Errno,
    },
    /// A folder cannot be covered by a file.
    #[error("mounting at {}: it is a folder; name a file, which need not exist", .path.display())]
    Folder {
        /// The mount point.
        path: PathBuf,
    },
    /// What is at the mount point cannot be found out, or a file cannot be created there.
    #[error("preparing the mount point {}: {error}", .path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A mount whose server is gone is in the way.
    #[error(
        "removing the stale mount at {}: {}; try 'umount -l {}' as the user who mounted it",
        .path.display(), .errno.description(), .path.display()
    )]
    Stale {
        /// The mount point.
        path: PathBuf,
        /// The error of `umount2(2)`.
        errno: Errno,
    },
    /// The kernel refuses the mount.
    #[error("mounting at {}: {}{}", .path.display(), .errno.description(), mount_hint(*.errno))]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The error of `mount(2)`.
        errno: Errno,
    },
    /// The kernel's channel does not speak FUSE as expected.
    #[error("mounting a file by /dev/fuse: {0}")]
    Handshake(#[from] HandshakeError),
}

fn open_hint(errno: Errno) -> &'static str {
    if [Errno::ENOENT, Errno::ENODEV, Errno::ENXIO].contains(&errno) {
        "; try 'modprobe fuse'"
    } else if errno == Errno::EACCES {
        "; run as root, or give this user access to it"
    } else if errno == Errno::EPERM {
        "; in a container, allow the character device 10:229"
    } else {
        ""
    }
}

fn mount_hint(errno: Errno) -> &'static str {
    if errno == Errno::EPERM {
        "; run as root, or in a user and mount namespace ('unshare -Urm')"
    } else if errno == Errno::ENODEV {
        "; the kernel has no FUSE, try 'modprobe fuse'"
    } else if errno == Errno::EINVAL {
        "; /dev/fuse must have been opened in this user namespace, and be mounted once"
    } else if errno == Errno::EACCES {
        "; a security module (AppArmor, SELinux) may be in the way"
    } else {
        ""
    }
}

/// Why a file could not be taken away in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// The kernel refuses.
    #[error("unmounting {}: {}; its clients are served until the server ends", .path.display(), .errno.description())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The error of `umount2(2)`, or of the way there.
        errno: Errno,
    },
    /// Something else is mounted on top of the file, or it was taken away before.
    #[error("unmounting {}: it is not the mount on top there; if another one covers it, unmount that first", .path.display())]
    Covered {
        /// The mount point.
        path: PathBuf,
    },
    /// The file is gone from its path, but whoever has it open is served still.
    #[error(
        "aborting the connection of {}: Operation not permitted; its clients are served until the server ends; \
         kernels from 2025 on permit it to user namespaces",
        .path.display()
    )]
    NotAborted {
        /// The mount point.
        path: PathBuf,
    },
}
