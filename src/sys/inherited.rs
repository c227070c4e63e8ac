//! The descriptors that this process was started with. Nobody in it owns one of them until it is taken over here.

use std::{
    fs,
    os::fd::{OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use super::{descriptor_flags, own_received};

/// Those that nobody has taken over.
static INHERITED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// The first number that is not a standard stream's.
const FIRST: RawFd = 3;

/// Notes which descriptors are there. To be called while this process has opened none; what it opens later is not among them.
pub(crate) fn note() {
    // Without /proc nothing can be taken over.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<RawFd> = numbers.filter(|number| *number >= FIRST).collect();
    // One was that of the folder, which is closed by now.
    numbers.retain(|number| descriptor_flags(*number).is_ok());
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
}

/// Whether there is an inherited descriptor of this number that nobody has taken over.
pub(crate) fn has(number: RawFd) -> bool {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner).contains(&number)
}

/// Takes over an inherited descriptor; `None` if it is none, or was taken over before.
pub(crate) fn take(number: RawFd) -> Option<OwnedFd> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = inherited.iter().position(|other| *other == number)?;
    inherited.swap_remove(at);
    // Noted before anything was opened here, and handed out once.
    Some(own_received(number))
}
