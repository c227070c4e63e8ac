//! One queue of a tun link: a file of the driver, from which several threads may take.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags},
    unistd::read,
};

/// Room for the longest that the tun driver gives: a GSO datagram of 64 KiB with its headers.
const RECEIVE: usize = 128 << 10;
/// Datagrams that are taken before others get their turn.
const AT_ONCE: usize = 64;

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    file: OwnedFd,
    source: u64,
    /// What a datagram is read into; takes memory only as far as datagrams have filled it. Held until the datagram is where it
    /// belongs, so that the order is kept.
    turn: Mutex<Vec<u8>>,
}

/// Why no more is taken from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is no more, or no more is wanted.
    Done,
    /// There may be more, but others wait.
    Others,
    /// The link was deleted.
    Gone,
}

impl Queue {
    /// With the number that it has as a source of events.
    pub(super) fn new(file: OwnedFd, source: u64) -> Self {
        Self { file, source, turn: Mutex::new(vec![0; RECEIVE]) }
    }

    /// Of which epoll is to tell: once for all that comes, and not again because it is still there, for it may be left there.
    pub(super) fn event(&self) -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, self.source)
    }

    /// Calls `take` with one datagram after the other, as long as it wants more.
    pub(super) fn receive(&self, mut take: impl FnMut(Bytes) -> bool) -> Stop {
        let mut buffer = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..AT_ONCE {
            match read(&self.file, &mut buffer) {
                Ok(length) => {
                    if !take(Bytes::copy_from_slice(&buffer[..length])) {
                        return Stop::Done;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Stop::Done,
                // EBADFD
                Err(_) => return Stop::Gone,
            }
        }
        Stop::Others
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
