//! Lines over the socket, and the descriptors that come with them.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::{
    io::retry_on_intr,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::ClientError;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// Descriptors that came with what was received, in order.
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptors: VecDeque::new() }
    }

    pub(crate) fn send<T: Serialize>(&mut self, value: &T) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(closed_or_failed)
    }

    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        // A long line comes in many pieces; none is looked at twice.
        let mut searched = 0;
        loop {
            let end = self.received[searched..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let line: Vec<u8> = self.received.drain(..=searched + end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            searched = self.received.len();
            if self.receive_more().map_err(closed_or_failed)? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
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
        io::{IoSlice, Read},
        os::fd::AsFd,
        thread,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let (mut daemon, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours);
        let long = json!({ "long": "x".repeat(100_000) });
        let writer = thread::spawn({
            let lines = format!("{long}\n{{}}\n1\n");
            move || lines.as_bytes().chunks(7_001).try_for_each(|piece| daemon.write_all(piece))
        });
        assert_eq!(connection.receive::<Value>().unwrap(), long);
        assert_eq!(connection.receive::<Value>().unwrap(), json!({}));
        assert_eq!(connection.receive::<Value>().unwrap(), json!(1));
        writer.join().unwrap().unwrap();
        assert!(matches!(connection.receive::<Value>(), Err(ClientError::Closed)));
    }

    #[test]
    fn descriptors_come_with_lines_in_order() {
        let (daemon, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours);
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
            assert_eq!(connection.receive::<u32>().unwrap(), number);
            let mut received: UnixStream = connection.take_descriptor().unwrap().into();
            received.write_all(&[7]).unwrap();
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [7]);
        }
        assert!(connection.take_descriptor().is_none());
    }
}
