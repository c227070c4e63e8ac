//! The only unsafe code of this package.
#![allow(unsafe_code, reason = "this is its one place")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that came in a message (`SCM_RIGHTS`). To be called once with each.
pub(crate) fn own_received(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel put the descriptor into this process's table for this message, so it is open, and the one
    // caller hands each over as soon as it has received it, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
