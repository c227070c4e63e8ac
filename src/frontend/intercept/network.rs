//! SIOCGSKNS and TUNGETDEVNETNS: a descriptor of a network namespace, for whoever has CAP_NET_ADMIN there.
//!
//! The device knows a namespace only by its number, so this module looks for the number in the likely places. It checks the rights of
//! the caller's thread as the kernel's `ns_capable` does.
//!
//! DIFFERS: under `memtun run`, SIOCGSKNS and TUNGETDEVNETNS find only two network namespaces: the caller's, and the one in which
//! `run` started the program. They give EPERM for any other.

use std::{
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
};

use nix::errno::Errno;

use crate::{
    abi::tun::ioctl::{SIOCGSKNS, TUNGETDEVNETNS},
    core::ioctl::{IS_DEVNETNS, IS_SKNS},
    frontend::opener,
    netns::Network,
    sys,
};

/// Whose network namespace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// That in which the file was opened.
    File,
    /// That of the tunnel.
    Tunnel,
}

impl Subject {
    pub(super) const ALL: [Self; 2] = [Self::File, Self::Tunnel];

    pub(super) fn of(command: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|subject| subject.command() == command)
    }

    /// What a client asks.
    pub(super) fn command(self) -> u32 {
        match self {
            Self::File => SIOCGSKNS,
            Self::Tunnel => TUNGETDEVNETNS,
        }
    }

    /// What the device is asked.
    fn question(self) -> u32 {
        match self {
            Self::File => IS_SKNS,
            Self::Tunnel => IS_DEVNETNS,
        }
    }
}

/// The namespace that a thread is to have.
///
/// # Errors
///
/// `EPERM` if it may not have it, or if it is not found; else what the device says.
pub(super) fn find(file: BorrowedFd<'_>, subject: Subject, tid: u32) -> Result<OwnedFd, Errno> {
    let places = [format!("/proc/{tid}/ns/net"), "/proc/self/ns/net".to_owned()];
    for network in places.iter().filter_map(|place| Network::try_from(File::open(place).ok()?).ok())
    {
        match sys::own_ioctl(file, subject.question(), network.inode()) {
            Ok(_) if opener::credentials(tid, 0, 0, Some(&network)).net_admin => {
                return Ok(network.into());
            }
            // It may be the other.
            Err(Errno::EPERM) => {}
            Ok(_) => break,
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EPERM)
}
