//! What stands behind a client's descriptor: a pipe, from which the kernel answers `poll`, `select` and `epoll`, and sends SIGIO.
//!
//! # Theory of operation
//!
//! The client has the pipe open for reading and writing; `fifo_open` allows that by `/proc/self/fd`. So one descriptor is readable while
//! there is something in the pipe, and writable while there is room. The front end puts tokens into it, and takes them out again:
//!
//! | tokens | the client's descriptor is |
//! | --- | --- |
//! | none | writable |
//! | one | readable and writable |
//! | as many as there is room for | readable |
//!
//! This end reads. So the last `close` of a client shows here as a hang-up: nobody has the pipe open for writing then. For the same
//! reason this end has it open for writing only while it puts a token there.
//!
//! A token is so long that two do not fit into one page, so that each takes a place of its own. One more token wakes whoever waits, also an edge-triggered
//! `epoll`, and sends SIGIO, as each datagram does that the kernel's tun queues.
//!
//! DIFFERS: under `--front-end notify`, `poll` reports POLLIN and POLLOUT where the kernel's tun reports POLLERR alone, which it does
//! before TUNSETIFF. It also reports POLLOUT where the tun reports nothing, on a tunnel that is down or has no room to send. A pipe has no
//! such states.
//!
//! DIFFERS: under `--front-end notify`, SIGIO also comes when a file stops being readable, and its code can be another one than the
//! kernel's tun gives.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::{pipe2, read, write},
};

use crate::{
    abi::tun::{POLL_ERROR, POLL_READABLE, POLL_WRITABLE},
    hub::FileKind,
};

/// How many tokens there is room for: more than two, so that a wake-up for a reader is none for a writer.
const ROOM: u8 = 4;
/// In bytes: a page for each.
const SIZE: i32 = 4096 * ROOM as i32;
/// More than half a page; no more than what is written whole or not at all (`PIPE_BUF`).
const TOKEN: [u8; 2049] = [0; 2049];

/// A pipe, and what it shows.
#[derive(Debug)]
pub(super) struct Pipe {
    end: OwnedFd,
    /// `end`, as a path.
    path: CString,
    /// `end`, as `stat` knows it.
    pub(super) kind: FileKind,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    tokens: u8,
    /// When that was found out.
    turn: u64,
}

impl Pipe {
    /// A pipe, and the client's end of it with these flags.
    ///
    /// # Errors
    ///
    /// The kernel's: `EMFILE`, `ENFILE`.
    pub(super) fn new(flags: OFlag) -> Result<(Self, OwnedFd), Errno> {
        let (end, other) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let path = path_of(other.as_fd())?;
        let theirs =
            open(path.as_c_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC | flags, Mode::empty())?;
        // A user with many pipes gets less, and then a writable descriptor may show as one that is not.
        let _size = fcntl(&end, FcntlArg::F_SETPIPE_SZ(SIZE));
        let pipe = Self {
            path: path_of(end.as_fd())?,
            kind: FileKind::of(end.as_fd())?,
            end,
            shown: Mutex::default(),
        };
        Ok((pipe, theirs))
    }

    /// Another open file of the same pipe for a client.
    pub(super) fn open_again(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        open(self.path.as_c_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC | flags, Mode::empty())
    }

    /// Whether no client has it open any more.
    pub(super) fn is_left(&self) -> bool {
        let mut ends = [PollFd::new(self.end.as_fd(), PollFlags::empty())];
        poll(&mut ends, PollTimeout::ZERO).is_ok()
            && ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    /// Whether a reader would be told that there is something.
    pub(super) fn is_readable(&self) -> bool {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).tokens > 0
    }

    /// Shows what is ready (`POLL*`), as it was found in a turn; one that is older than what is shown is passed over. `event`: whoever
    /// waits is told, also if that was shown before.
    pub(super) fn show(&self, ready: u32, turn: u64, event: bool) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if turn < shown.turn && !event {
            return;
        }
        shown.turn = turn.max(shown.turn);
        let has = |bits| ready & bits & !POLL_ERROR != 0;
        let tokens = match (has(POLL_READABLE), has(POLL_WRITABLE)) {
            _ if ready & POLL_ERROR != 0 => 1,
            (true, true) => 1,
            (true, false) => ROOM,
            (false, _) => 0,
        };
        let wakes = event && tokens > 0;
        if tokens == shown.tokens && !wakes {
            return;
        }
        let more = tokens.saturating_sub(shown.tokens).max(u8::from(wakes));
        let mut now = shown.tokens;
        if more > 0 && now + more > ROOM {
            now = self.take(now, now + more - ROOM);
        }
        now = self.put(now, more);
        shown.tokens = self.take(now, now.saturating_sub(tokens));
    }

    /// Puts tokens there, and says how many there are then.
    fn put(&self, mut now: u8, more: u8) -> u8 {
        if more == 0 {
            return now;
        }
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(end) = open(self.path.as_c_str(), flags, Mode::empty()) else { return now };
        for _ in 0..more {
            now += u8::from(write(&end, &TOKEN).is_ok());
        }
        now
    }

    /// Takes tokens away, and says how many there are then.
    fn take(&self, mut now: u8, less: u8) -> u8 {
        for _ in 0..less {
            match read(&self.end, &mut [0; TOKEN.len()]) {
                Ok(_) => now -= 1,
                // A client has read it, by a number that is not ours.
                Err(_) => return 0,
            }
        }
        now
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

fn path_of(end: BorrowedFd<'_>) -> Result<CString, Errno> {
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    CString::new(path).map_err(|error| {
        let error: io::Error = error.into();
        error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(end: &OwnedFd) -> (bool, bool) {
        let mut ends = [PollFd::new(end.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        poll(&mut ends, PollTimeout::ZERO).unwrap();
        let events = ends[0].revents().unwrap();
        (events.contains(PollFlags::POLLIN), events.contains(PollFlags::POLLOUT))
    }

    #[test]
    fn clients_end_is_ready_as_is_shown() {
        let (pipe, theirs) = Pipe::new(OFlag::empty()).unwrap();
        assert_eq!(ready(&theirs), (false, true));
        let both = POLL_READABLE | POLL_WRITABLE;
        let states = [
            (both, (true, true)),
            (POLL_READABLE, (true, false)),
            (POLL_WRITABLE, (false, true)),
            (POLL_ERROR, (true, true)),
            (0, (false, true)),
        ];
        let mut turn = 0;
        for (from, _) in states {
            for (to, expected) in states {
                for (events, event) in [(from, false), (to, false), (to, true)] {
                    turn += 1;
                    pipe.show(events, turn, event);
                }
                assert_eq!(ready(&theirs), expected, "{from} {to}");
                assert_eq!(pipe.is_readable(), expected.0);
            }
        }
        pipe.show(both, turn - 1, false);
        assert_eq!(ready(&theirs), (false, true), "older than what is shown");
    }

    #[test]
    fn last_close_is_seen() {
        let (pipe, theirs) = Pipe::new(OFlag::O_NONBLOCK).unwrap();
        let again = pipe.open_again(OFlag::empty()).unwrap();
        pipe.show(POLL_READABLE, 1, true);
        drop(theirs);
        assert!(!pipe.is_left());
        drop(again);
        assert!(pipe.is_left());
    }

    #[test]
    fn every_event_wakes_an_edge_triggered_wait() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
        let (pipe, theirs) = Pipe::new(OFlag::empty()).unwrap();
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        set.add(&theirs, EpollEvent::new(flags, 1)).unwrap();
        let mut events = [EpollEvent::empty()];
        let mut wait = || set.wait(&mut events, EpollTimeout::ZERO).unwrap();
        assert_eq!(wait(), 0);
        for turn in 1..9 {
            pipe.show(POLL_READABLE | POLL_WRITABLE, turn, true);
            assert_eq!(wait(), 1);
            assert_eq!(wait(), 0);
        }
    }
}
