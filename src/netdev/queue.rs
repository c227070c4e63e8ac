//! One queue of a tun: a file of the driver, from which several threads may take.

use std::{
    io::IoSlice,
    os::fd::AsFd,
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollEvent, EpollFlags},
        uio::writev,
    },
    unistd::read,
};

use super::{buffer, share::Held};

/// Room for the longest that the tun driver gives: a GSO datagram of 64 KiB with its headers.
const RECEIVE: usize = 128 << 10;
/// Datagrams that are taken before others get their turn.
const AT_ONCE: usize = 64;

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// `None`: it was closed. Whoever closes it knows then that the kernel has done so.
    file: RwLock<Option<Held>>,
    source: u64,
    /// Held until the datagram that was read is where it belongs, so that the order is kept.
    turn: Mutex<()>,
}

/// Why no more is taken from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is no more, or no more is wanted.
    Done,
    /// There may be more, but others wait.
    Others,
    /// The device was deleted.
    Gone,
}

impl Queue {
    /// With the number that it has as a source of events.
    pub(super) fn new(file: Held, source: u64) -> Self {
        Self { file: RwLock::new(Some(file)), source, turn: Mutex::new(()) }
    }

    pub(super) fn source(&self) -> u64 {
        self.source
    }

    /// Tells epoll of it: once for all that comes, and not again because it is still there, for it may be left there.
    pub(super) fn watch(&self, epoll: &Epoll) -> Result<(), Errno> {
        self.with(|file| epoll.add(file, self.event()))
    }

    /// Lets epoll tell of it again, if there is something.
    pub(super) fn watch_again(&self, epoll: &Epoll) {
        // It fails only if it is not watched any more.
        let _unwatched = self.with(|file| epoll.modify(file, &mut self.event()));
    }

    pub(super) fn unwatch(&self, epoll: &Epoll) {
        let _unwatched = self.with(|file| epoll.delete(file));
    }

    fn event(&self) -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, self.source)
    }

    /// Calls `take` with one datagram after the other, as long as it wants more.
    pub(super) fn receive(&self, take: impl FnMut(Bytes) -> bool) -> Stop {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        buffer::with(RECEIVE, |buffer| self.receive_into(buffer, take))
    }

    fn receive_into(&self, buffer: &mut [u8], mut take: impl FnMut(Bytes) -> bool) -> Stop {
        for _ in 0..AT_ONCE {
            match self.with(|file| read(file, buffer)) {
                Ok(length) => {
                    if !take(Bytes::copy_from_slice(&buffer[..length])) {
                        return Stop::Done;
                    }
                }
                Err(Errno::EINTR) => {}
                // EBADF: it was closed.
                Err(Errno::EAGAIN | Errno::EBADF) => return Stop::Done,
                // EBADFD
                Err(_) => return Stop::Gone,
            }
        }
        Stop::Others
    }

    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        loop {
            match self.with(|file| writev(file, parts)) {
                Err(Errno::EINTR) => {}
                // It was closed.
                Err(Errno::EBADF) => return Err(Errno::EBADFD),
                written => return written,
            }
        }
    }

    /// Does something with the descriptor; `EBADF` if it was closed.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        act(self.file().as_ref().ok_or(Errno::EBADF)?.as_fd())
    }

    /// Closes it, when whoever reads or writes at the moment has done so. That takes the kernel a while.
    pub(super) fn close(&self) {
        let file = self.file.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(file);
    }

    fn file(&self) -> RwLockReadGuard<'_, Option<Held>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }
}
