//! Why a device could not be registered or stopped: what an operator reads.
//!
//! Each message is one line that names the thing and says what to do about it.

use std::io;
use std::path::PathBuf;

use super::name::DeviceName;
use crate::errno::Errno;
use crate::handshake::HandshakeError;

/// Why a device could not be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// `/dev/cuse` cannot be opened: the module is not there, or the caller may not.
    #[error("opening /dev/cuse: {}{}", .errno.description(), open_hint(*.errno))]
    Open {
        /// The error of `open(2)`.
        errno: Errno,
    },
    /// Another CUSE device has the name.
    #[error(
        "registering /dev/{name}: another CUSE device has this name; stop its server or choose another name"
    )]
    NameTaken {
        /// The name.
        name: DeviceName,
    },
    /// Another driver has the device number.
    #[error(
        "registering /dev/{name}: device number {major}:{minor} is taken; choose another, or major 0 for a free one"
    )]
    NumberTaken {
        /// The name.
        name: DeviceName,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// The kernel refused the device for a reason that cannot be seen from here.
    #[error("registering /dev/{name}: refused by the kernel; its log ('dmesg') says why")]
    Refused {
        /// The name.
        name: DeviceName,
    },
    /// The kernel's channel does not speak CUSE as expected.
    #[error("registering a device at /dev/cuse: {0}")]
    Handshake(#[from] HandshakeError),
    /// The device is there, but its number cannot be read.
    #[error("reading {}: {error}; is /sys mounted?", .path.display())]
    Sysfs {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The mode or the owner of the node cannot be set.
    #[error("setting mode and owner of {}: {error}", .path.display())]
    Node {
        /// The node.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

impl RegisterError {
    pub(super) fn open(error: io::Error) -> Self {
        Self::Open { errno: Errno::of_io(&error) }
    }
}

fn open_hint(errno: Errno) -> &'static str {
    // A static node whose module is missing gives ENODEV or ENXIO.
    if [Errno::ENOENT, Errno::ENODEV, Errno::ENXIO].contains(&errno) {
        "; try 'modprobe cuse'"
    } else if errno == Errno::EACCES {
        "; run as root, or give this user access to it"
    } else if errno == Errno::EPERM {
        "; in a container, allow the character device 10:203"
    } else {
        ""
    }
}

/// Why a device could not be stopped in order.
#[derive(Debug, thiserror::Error)]
#[error("writing {}: {error}; the device ends with the process", .path.display())]
pub struct StopError {
    path: PathBuf,
    error: io::Error,
}

impl StopError {
    pub(super) fn new(name: &DeviceName, error: io::Error) -> Self {
        Self { path: name.sysfs_path().join("abort"), error }
    }
}
