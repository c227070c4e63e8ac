//! The harness's side of memtun's control socket: one call at a time, blocking.
//!
//! A test starts `memtun run PROGRAM`, or a daemon by `memtun serve`, and holds the far end of the program's tunnel:
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//!
//! use memtun_client::{
//!     Client,
//!     proto::{
//!         inject::Inject,
//!         take::Take,
//!         wait::{Until, Wait},
//!     },
//! };
//!
//! let mut client = Client::connect_within(Path::new("/run/memtun/control"), Duration::from_secs(10))?;
//! client.call(&Wait::new("tun0", Until::Reading))?;
//! client.call(&Inject::new("tun0", std::fs::read("request.bin")?))?;
//! let answer = client.call(&Take::new("tun0").timeout(Duration::from_secs(1)))?;
//! assert_eq!(answer.datagrams[0].datagram[0] >> 4, 4, "an IPv4 datagram");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`proto`] has the methods: the type is the parameters, and [`Method::Result`] is what [`Client::call`] gives. For many
//! datagrams [`Client::attach`] gives a socket.

mod connection;
mod error;

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

pub use memtun_proto as proto;
use memtun_proto::{
    Address, Method,
    attach::Attach,
    event::WatchEvent,
    line::{Call, Greeting, Line, PROTOCOL},
    list::{List, TunnelView},
};
use rustix::event::{Timespec, poll};
use serde_json::Value;

use self::connection::Connection;
pub use self::error::ClientError;

/// How often a daemon that is not there yet is looked for.
const CONNECT_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    events: VecDeque<Value>,
    last_call: u64,
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
        let mut connection = Connection::new(stream);
        let line: Value = connection.receive()?;
        if let Ok(Line::Error { error, .. }) = serde_json::from_value::<Line>(line.clone()) {
            return Err(error.into());
        }
        let greeting: Greeting = serde_json::from_value(line)?;
        if greeting.protocol != PROTOCOL {
            return Err(ClientError::Protocol { daemon: greeting.protocol, ours: PROTOCOL });
        }
        Ok(Self { connection, events: VecDeque::new(), last_call: 0 })
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
            let _interrupted = poll(&mut [], Some(&CONNECT_INTERVAL));
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
        self.connection.send(&call)?;
        loop {
            match self.connection.receive::<Line>()? {
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
                if let Line::Event { event } = self.connection.receive::<Line>()? {
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
    pub fn attach(&mut self, tunnel: impl Into<Address>) -> Result<OwnedFd, ClientError> {
        self.attach_as(&Attach::new(tunnel))
    }

    /// The same, with a vnet header of 10 bytes in front of each message.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn attach_with_vnet(&mut self, tunnel: impl Into<Address>) -> Result<OwnedFd, ClientError> {
        self.attach_as(&Attach::new(tunnel).vnet(true))
    }

    fn attach_as(&mut self, attach: &Attach) -> Result<OwnedFd, ClientError> {
        self.call(attach)?;
        self.connection
            .take_descriptor()
            .ok_or_else(|| ClientError::Io(io::Error::other("no descriptor came with the answer")))
    }

    /// Whether a tunnel is a tap; false if there is no such tunnel. The address is to be written as `list` shows it.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn is_tap(&mut self, tunnel: &Address) -> Result<bool, ClientError> {
        let listing = self.call(&List::default())?;
        let shown = tunnel.as_str();
        let is_meant = |tunnel: &&TunnelView| {
            let TunnelView { name, id, scope, .. } = tunnel;
            shown == *name || shown == format!("#{id}") || shown == format!("{name}@{scope}")
        };
        // As the daemon finds it: a deleted tunnel is still listed, and gives way to a living one of its name.
        let mut meant = listing.tunnels.iter().filter(is_meant);
        let living = meant.clone().find(|tunnel| tunnel.link != "gone");
        Ok(living.or_else(|| meant.next_back()).is_some_and(|tunnel| tunnel.mode == "tap"))
    }
}
