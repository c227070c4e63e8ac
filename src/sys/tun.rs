//! The kernel's own tun driver, as memtun uses it: its ioctls, by the kind of their argument.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    libc::{self, c_int, c_ulong},
};

use super::own_received;
use crate::abi::tun::{IfReq, ioctl};

/// Commands that take a `struct ifreq` and give it back.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum IfReqCommand {
    Attach = ioctl::TUNSETIFF,
    Attached = ioctl::TUNGETIFF,
    Address = ioctl::SIOCGIFHWADDR,
    SetAddress = ioctl::SIOCSIFHWADDR,
    SetQueue = ioctl::TUNSETQUEUE,
    /// On any socket, of the interface that is named.
    SetFlags = ioctl::SIOCSIFFLAGS,
}

/// Commands that take a value.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum ValueCommand {
    Persist = ioctl::TUNSETPERSIST,
    Owner = ioctl::TUNSETOWNER,
    Group = ioctl::TUNSETGROUP,
    LinkType = ioctl::TUNSETLINK,
    Offload = ioctl::TUNSETOFFLOAD,
}

/// Commands that read an `int`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum IntCommand {
    VnetHeaderSize = ioctl::TUNSETVNETHDRSZ,
    Carrier = ioctl::TUNSETCARRIER,
    Index = ioctl::TUNSETIFINDEX,
}

/// Performs a command with a `struct ifreq`; returns what the kernel made of it.
pub(crate) fn with_ifreq(
    file: BorrowedFd<'_>,
    command: IfReqCommand,
    request: &IfReq,
) -> Result<IfReq, Errno> {
    let mut bytes = [0; IfReq::SIZE];
    let given = request.as_bytes();
    bytes[..given.len()].copy_from_slice(given);
    // SAFETY: these commands read and write the 40 bytes of a `struct ifreq` at most, and `bytes` has them.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), (command as u32).into(), bytes.as_mut_ptr()) };
    Errno::result(result)?;
    IfReq::from_bytes(&bytes).ok_or(Errno::EINVAL)
}

/// Performs a command with a value.
pub(crate) fn with_value(
    file: BorrowedFd<'_>,
    command: ValueCommand,
    value: u64,
) -> Result<(), Errno> {
    let value: c_ulong = value;
    // SAFETY: these commands take no address.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), (command as u32).into(), value) };
    Errno::result(result).map(drop)
}

/// Performs a command with an `int`.
pub(crate) fn with_int(file: BorrowedFd<'_>, command: IntCommand, value: i32) -> Result<(), Errno> {
    let value: c_int = value;
    // SAFETY: these commands read the 4 bytes of an `int`, and `value` has them.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), (command as u32).into(), &raw const value) };
    Errno::result(result).map(drop)
}

/// TUNGETDEVNETNS: the network namespace that the interface is in by now.
pub(crate) fn network_of(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let command = ioctl::TUNGETDEVNETNS;
    // SAFETY: the command takes no argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command.into(), 0) };
    Errno::result(result).map(own_received)
}
