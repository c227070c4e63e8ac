//! Lines over the socket, and the descriptors that come with them.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::ClientError;

/// By when the daemon is to have done something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// `None`: whenever it likes.
    end: Option<Instant>,
    /// For the message.
    patience: Duration,
}

impl Deadline {
    pub(crate) const NEVER: Self = Self { end: None, patience: Duration::MAX };

    /// A time that no clock reaches is no deadline.
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    pub(crate) fn after(patience: Option<Duration>) -> Self {
        let Some(patience) = patience else { return Self::NEVER };
        Self { end: Instant::now().checked_add(patience), patience }
    }

    /// The time left.
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    fn rest(self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// For messages.
    path: PathBuf,
    received: Vec<u8>,
    /// Descriptors that came with what was received, in order.
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    /// Connects to a socket. A daemon that accepts nobody makes that wait, once its backlog is full.
    pub(crate) fn open(path: &Path, deadline: Deadline) -> Result<Self, ClientError> {
        // Zero would be no limit.
        let patience = deadline.rest().map(|rest| rest.max(Duration::from_millis(1)));

        let connected = || {
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // connect(2) of a Unix socket waits as long as a send would. Nothing else here waits in a call but poll(2).
            set_socket_timeout(&socket, Timeout::Send, patience)?;
            let address = SocketAddrUnix::new(path)?;
            retry_on_intr(|| connect(&socket, &address))?;
            Ok(socket)
        };
        match connected() {
            Ok(socket) => Ok(Self::new(socket.into(), path)),
            Err(Errno::AGAIN) => Err(unresponsive(path, deadline)),
            Err(errno) => Err(ClientError::Connect { path: path.to_owned(), source: errno.into() }),
        }
    }

    fn new(stream: UnixStream, path: &Path) -> Self {
        let path = path.to_owned();
        Self { stream, path, received: Vec::new(), descriptors: VecDeque::new() }
    }

    pub(crate) fn send<T: Serialize>(
        &mut self,
        value: &T,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match retry_on_intr(|| send(&self.stream, rest, flags)) {
                Ok(length) => rest = &rest[length..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(errno) => return Err(closed_or_failed(errno.into())),
            }
        }
        Ok(())
    }

    pub(crate) fn receive<T: DeserializeOwned>(
        &mut self,
        deadline: Deadline,
    ) -> Result<T, ClientError> {
        // A long line comes in many pieces; none is looked at twice.
        let mut searched = 0;
        loop {
            let end = self.received[searched..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let line: Vec<u8> = self.received.drain(..=searched + end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            searched = self.received.len();
            self.wait(PollFlags::IN, deadline)?;
            if self.receive_more().map_err(closed_or_failed)? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Waits until the socket can be read or written. After the deadline the connection is closed: an answer that came late would be
    /// taken for another's, and what `take` removes would be lost.
    fn wait(&self, events: PollFlags, deadline: Deadline) -> Result<(), ClientError> {
        let ready = retry_on_intr(|| {
            let mut sockets = [PollFd::new(&self.stream, events)];
            let rest = deadline.rest().and_then(|rest| Timespec::try_from(rest).ok());
            poll(&mut sockets, rest.as_ref())
        });
        match ready {
            Ok(0) => Err(self.give_up(deadline)),
            Ok(_) => Ok(()),
            Err(errno) => Err(ClientError::Io(errno.into())),
        }
    }

    /// Gives up after the deadline, even if there is something to read.
    pub(crate) fn check(&self, deadline: Deadline) -> Result<(), ClientError> {
        if deadline.rest() == Some(Duration::ZERO) {
            return Err(self.give_up(deadline));
        }
        Ok(())
    }

    fn give_up(&self, deadline: Deadline) -> ClientError {
        let _closed = self.stream.shutdown(Shutdown::Both);
        unresponsive(&self.path, deadline)
    }

    /// Descriptors come with bytes, so every byte is received in the way that takes them too.
    fn receive_more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = retry_on_intr(|| {
            let mut pieces = [IoSliceMut::new(&mut buffer)];
            recvmsg(&self.stream, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        self.received.extend_from_slice(&buffer[..message.bytes]);
        for piece in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = piece {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(message.bytes)
    }
}

fn unresponsive(path: &Path, deadline: Deadline) -> ClientError {
    ClientError::Unresponsive { path: path.to_owned(), after: deadline.patience }
}

/// A daemon that ended has closed the connection, whichever call notices.
fn closed_or_failed(error: io::Error) -> ClientError {
    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
        ClientError::Closed
    } else {
        ClientError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Read, Write},
        os::fd::AsFd,
        thread,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let (mut daemon, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, Path::new("socket"));
        let long = json!({ "long": "x".repeat(100_000) });
        let writer = thread::spawn({
            let lines = format!("{long}\n{{}}\n1\n");
            move || lines.as_bytes().chunks(7_001).try_for_each(|piece| daemon.write_all(piece))
        });
        assert_eq!(connection.receive::<Value>(Deadline::NEVER).unwrap(), long);
        assert_eq!(connection.receive::<Value>(Deadline::NEVER).unwrap(), json!({}));
        assert_eq!(connection.receive::<Value>(Deadline::NEVER).unwrap(), json!(1));
        writer.join().unwrap().unwrap();
        assert!(matches!(connection.receive::<Value>(Deadline::NEVER), Err(ClientError::Closed)));
    }

    #[test]
    fn descriptors_come_with_lines_in_order() {
        let (daemon, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, Path::new("socket"));
        let mut kept = Vec::new();
        for line in [&b"1\n"[..], b"2\n"] {
            let (near, far) = UnixStream::pair().unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [far.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&daemon, &[IoSlice::new(line)], &mut control, SendFlags::empty()).unwrap();
            kept.push(near);
        }
        for (number, mut near) in (1..).zip(kept) {
            assert_eq!(connection.receive::<u32>(Deadline::NEVER).unwrap(), number);
            let mut received: UnixStream = connection.take_descriptor().unwrap().into();
            received.write_all(&[7]).unwrap();
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [7]);
        }
        assert!(connection.take_descriptor().is_none());
    }
}
