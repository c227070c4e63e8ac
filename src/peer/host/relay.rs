//! A forwarded connection: bytes between a socket of the stack and one of this machine, both ways.
//!
//! Nothing is buffered between the two. Bytes leave the buffer of one only when the other takes them, so a slow reader slows the
//! writer down. The socket of this machine never blocks. Until its `connect` is done, reads and writes get EAGAIN; if `connect`
//! failed, they get its error.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use smoltcp::socket::tcp;

pub(super) struct Relay {
    stream: TcpStream,
    /// It may have something to read: it had when it was last asked, or poll said so.
    is_readable: bool,
    /// It may have room to write.
    is_writable: bool,
    /// All that the client will ever send has been written, and its end passed on.
    client_ended: bool,
    /// All that this machine's socket will ever give has been read.
    machine_ended: bool,
}

impl Relay {
    /// Begins to connect.
    pub(super) fn start(to: SocketAddr) -> io::Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self {
            stream: socket.into(),
            is_readable: true,
            is_writable: true,
            client_ended: false,
            machine_ended: false,
        })
    }

    /// Moves what can be moved.
    ///
    /// # Errors
    ///
    /// This machine's socket failed: the connection is to be aborted.
    pub(super) fn work(&mut self, client: &mut tcp::Socket<'_>) -> io::Result<()> {
        while self.is_writable && client.can_recv() {
            let written = client.recv(|bytes| count((&self.stream).write(bytes)));
            self.is_writable = written.map_err(io::Error::other)??.is_some();
        }
        if !client.may_recv() && !self.client_ended {
            self.client_ended = true;
            self.stream.shutdown(Shutdown::Write)?;
        }
        while self.is_readable && client.can_send() && !self.machine_ended {
            let read = client.send(|room| count((&self.stream).read(room)));
            match read.map_err(io::Error::other)?? {
                None => self.is_readable = false,
                Some(0) => {
                    self.machine_ended = true;
                    client.close();
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What it waits for; `None` if for nothing of this machine.
    pub(super) fn interest(&self, client: &tcp::Socket<'_>) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLOUT, !self.is_writable && client.can_recv());
        let waits_to_read = !self.is_readable && !self.machine_ended && client.can_send();
        events.set(PollFlags::POLLIN, waits_to_read);
        (!events.is_empty()).then(|| (self.stream.as_fd(), events))
    }

    /// What poll said. An error and an end are found by reading or writing.
    pub(super) fn set_ready(&mut self, ready: PollFlags) {
        let failed = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        self.is_readable |= ready.intersects(PollFlags::POLLIN | failed);
        self.is_writable |= ready.intersects(PollFlags::POLLOUT | failed);
    }
}

/// How many bytes the stack is to move, and what became of the call: `None` if it would have blocked.
fn count(moved: io::Result<usize>) -> (usize, io::Result<Option<usize>>) {
    match moved {
        Ok(count) => (count, Ok(Some(count))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Ok(None)),
        // Nothing was moved, and it is tried again.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => (0, Ok(Some(usize::MAX))),
        Err(error) => (0, Err(error)),
    }
}
