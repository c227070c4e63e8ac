//! The harness's side of the control socket: one call at a time, blocking.

use std::{
    collections::VecDeque,
    fs,
    io::{self, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::{Uid, User},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    command::{
        Method,
        attach::Attach,
        list::{List, TunnelView},
        watch::WatchEvent,
    },
    control::wire::{Call, Failure, Greeting, Line, PROTOCOL},
    core::Address,
};

/// How often a daemon that is not there yet is looked for.
const CONNECT_INTERVAL_MS: u8 = 20;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    /// Descriptors that came with what was received, in order.
    descriptors: VecDeque<OwnedFd>,
    events: VecDeque<Value>,
    last_call: u64,
}

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("connecting to control socket {path}: {source}; {}", advice(path, source))]
    Connect {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon speaks another version of the protocol.
    #[error(
        "the daemon speaks control protocol {daemon}, this program {ours}; use both from one version"
    )]
    Protocol {
        /// The daemon's.
        daemon: u32,
        /// This program's.
        ours: u32,
    },
    /// The daemon refused the call.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The daemon's answer is no answer.
    #[error("the daemon sent something that is not an answer: {0}")]
    Garbled(#[from] serde_json::Error),
    /// The connection failed.
    #[error("talking to the daemon: {0}")]
    Io(#[source] io::Error),
    /// What the daemon said could not be written out.
    #[error("writing to standard output: {0}")]
    Output(#[from] io::Error),
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Closed,
}

impl Client {
    /// Connects to the daemon that listens at `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`], [`ClientError::Protocol`], or a refusal (too many connections).
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Self {
            stream,
            received: Vec::new(),
            descriptors: VecDeque::new(),
            events: VecDeque::new(),
            last_call: 0,
        };
        let line: Value = client.receive()?;
        if let Ok(Line::Error { error, .. }) = serde_json::from_value::<Line>(line.clone()) {
            return Err(error.into());
        }
        let greeting: Greeting = serde_json::from_value(line)?;
        if greeting.protocol != PROTOCOL {
            return Err(ClientError::Protocol { daemon: greeting.protocol, ours: PROTOCOL });
        }
        Ok(client)
    }

    /// Connects to a daemon that may still have to start.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect), once the time is over.
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let start = Instant::now();
        loop {
            match Self::connect(path) {
                Err(ClientError::Connect { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) && start.elapsed() < timeout => {}
                connected => return connected,
            }
            // There is nothing to wait on: not even the socket's folder need exist.
            let _interrupted = poll(&mut [], PollTimeout::from(CONNECT_INTERVAL_MS));
        }
    }

    /// Calls a method and waits for its result. Events that come meanwhile are kept.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`] with what the daemon says, or that the connection failed.
    pub fn call<M: Method>(&mut self, params: &M) -> Result<M::Result, ClientError> {
        self.last_call += 1;
        let call = Call { id: self.last_call.into(), method: M::NAME.to_owned(), params };
        let mut line = serde_json::to_vec(&call)?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(closed_or_failed)?;
        loop {
            match self.receive::<Line>()? {
                Line::Result { id, result } if id == call.id => {
                    return Ok(serde_json::from_value(result)?);
                }
                Line::Error { id, error } if id == call.id || id.is_null() => {
                    return Err(error.into());
                }
                Line::Event { event } => self.events.push_back(event),
                Line::Result { .. } | Line::Error { .. } => {}
            }
        }
    }

    /// Waits for the next event of a watch.
    ///
    /// # Errors
    ///
    /// That the connection failed.
    pub fn next_event(&mut self) -> Result<WatchEvent, ClientError> {
        let event = match self.events.pop_front() {
            Some(event) => event,
            None => loop {
                if let Line::Event { event } = self.receive::<Line>()? {
                    break event;
                }
            },
        };
        Ok(serde_json::from_value(event)?)
    }

    /// A `SOCK_SEQPACKET` socket for a tunnel: one message is one datagram, each way.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn attach(&mut self, tunnel: Address) -> Result<OwnedFd, ClientError> {
        self.attach_as(&Attach { tunnel, vnet: false })
    }

    /// The same, with a vnet header of 10 bytes in front of each message.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn attach_with_vnet(&mut self, tunnel: Address) -> Result<OwnedFd, ClientError> {
        self.attach_as(&Attach { tunnel, vnet: true })
    }

    fn attach_as(&mut self, attach: &Attach) -> Result<OwnedFd, ClientError> {
        self.call(attach)?;
        self.descriptors
            .pop_front()
            .ok_or_else(|| ClientError::Io(io::Error::other("no descriptor came with the answer")))
    }

    /// Whether a tunnel is a tap.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn is_tap(&mut self, address: &Address) -> Result<bool, ClientError> {
        let listing = self.call(&List {})?;
        let shown = address.to_string();
        let is_meant = |tunnel: &&TunnelView| {
            let TunnelView { name, id, scope, .. } = tunnel;
            shown == *name || shown == format!("#{id}") || shown == format!("{name}@{scope}")
        };
        // As Core::find: a deleted tunnel is still listed, and gives way to a living one of its name.
        let mut meant = listing.tunnels.iter().filter(is_meant);
        let living = meant.clone().find(|tunnel| tunnel.link != "gone");
        Ok(living.or_else(|| meant.next_back()).is_some_and(|tunnel| tunnel.mode == "tap"))
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
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

    /// Descriptors come with bytes, so every byte is received in the way that takes them too.
    fn receive_more(&mut self) -> Result<usize, io::Error> {
        let mut buffer = [0; 16 << 10];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let (length, arrived) = {
            let mut pieces = [IoSliceMut::new(&mut buffer)];
            let message = loop {
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                match recvmsg::<()>(self.stream.as_raw_fd(), &mut pieces, Some(&mut control), flags)
                {
                    Err(nix::errno::Errno::EINTR) => {}
                    message => break message?,
                }
            };
            let mut arrived = Vec::new();
            for piece in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = piece {
                    arrived.extend(descriptors);
                }
            }
            (message.bytes, arrived)
        };
        self.received.extend_from_slice(&buffer[..length]);
        self.descriptors.extend(arrived.into_iter().map(crate::sys::own_received));
        Ok(length)
    }
}

/// What to do where nobody answers.
fn advice(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return "is 'memtun serve' running, and is this its --control path?".to_owned();
    }
    match fs::metadata(path) {
        Ok(socket) => {
            let owner = User::from_uid(Uid::from_raw(socket.uid())).ok().flatten();
            let owner = owner.map_or_else(|| socket.uid().to_string(), |user| user.name);
            let mode = socket.mode() & 0o7777;
            format!(
                "it belongs to user {owner}, with mode {mode:04o}; use sudo, or give 'memtun serve' --control-group or --control-mode"
            )
        }
        Err(_) => "you may not look into one of its folders; use sudo, or another path".to_owned(),
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
