//! File descriptors, each in the share of the user for whom it is open.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::MakeError;
use crate::{
    abi::tun::Name,
    core::{Charge, Resource, User},
};

/// A file descriptor, which counts for a user until it is closed.
#[derive(Debug)]
pub(super) struct Held {
    file: OwnedFd,
    _charge: Charge,
}

impl Held {
    pub(super) fn new(file: OwnedFd, charge: Charge) -> Self {
        Self { file, _charge: charge }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Counts descriptors that are about to be opened for the device of this name.
pub(super) fn charge(user: &Arc<User>, name: Name, count: usize) -> Result<Charge, MakeError> {
    let uid = user.uid();
    user.charge_outside(Resource::Descriptors, count)
        .map_err(|exhausted| MakeError::NoDescriptors { name, uid, exhausted })
}
