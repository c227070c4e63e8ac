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
//!
//! No call waits forever for a daemon that is stopped or hangs: it has [`PATIENCE`] for each answer, and in addition the time
//! that the call itself may wait ([`Method::longest_wait`]). [`Client::set_patience`] changes this. [`Client::next_event`] alone waits for
//! as long as nothing happens.

mod connection;
mod error;

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
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

use self::connection::{Connection, Deadline};
pub use self::error::ClientError;

/// How long a daemon may take to answer, unless [`Client::set_patience`] is called.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often a daemon that is not there yet is looked for.
const CONNECT_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    events: VecDeque<Value>,
    last_call: u64,
    patience: Option<Duration>,
}

impl Client {
    /// Connects to the daemon that listens at `path`, and waits at most [`PATIENCE`] for its greeting.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`], [`ClientError::Unresponsive`], [`ClientError::Protocol`], or a refusal (too many connections).
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_by(path, Deadline::after(Some(PATIENCE)))
    }

    fn connect_by(path: &Path, deadline: Deadline) -> Result<Self, ClientError> {
        let mut connection = Connection::open(path, deadline)?;
        let line: Value = connection.receive(deadline)?;
        if let Ok(Line::Error { error, .. }) = serde_json::from_value::<Line>(line.clone()) {
            return Err(error.into());
        }
        let greeting: Greeting = serde_json::from_value(line)?;
        if greeting.protocol != PROTOCOL {
            return Err(ClientError::Protocol { daemon: greeting.protocol, ours: PROTOCOL });
        }
        let patience = Some(PATIENCE);
        Ok(Self { connection, events: VecDeque::new(), last_call: 0, patience })
    }

    /// Connects to a daemon that may still have to start. A socket may be there before its daemon is ready, so the daemon has the rest
    /// of the time and [`PATIENCE`] for its greeting.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect), once the time is over.
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let start = Instant::now();
        let deadline = Deadline::after(Some(timeout.saturating_add(PATIENCE)));
        loop {
            match Self::connect_by(path, deadline) {
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

    /// Chooses how long the daemon may take to answer a call, in addition to the time that the call itself waits. `None`: there is no
    /// limit. The default is [`PATIENCE`].
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// Calls a method and waits for its result. Events that come meanwhile are kept.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`] with what the daemon says; [`ClientError::Unresponsive`] if it says nothing in time, which closes the
    /// connection; or that the connection failed.
    pub fn call<M: Method>(&mut self, params: &M) -> Result<M::Result, ClientError> {
        let patience = self.patience.map(|patience| patience.saturating_add(params.longest_wait()));
        let deadline = Deadline::after(patience);
        self.last_call += 1;
        let call = Call { id: self.last_call.into(), method: M::NAME.to_owned(), params };
        self.connection.send(&call, deadline)?;
        loop {
            match self.connection.receive::<Line>(deadline)? {
                Line::Result { id, result } if id == call.id => {
                    return Ok(serde_json::from_value(result)?);
                }
                Line::Error { id, error } if id == call.id || id.is_null() => {
                    return Err(error.into());
                }
                Line::Event { event } => {
                    self.events.push_back(event);
                    // There may be more of them than can be read, and no answer.
                    self.connection.check(deadline)?;
                }
                Line::Result { .. } | Line::Error { .. } => {}
            }
        }
    }

    /// Waits for the next event of a watch, however long that takes.
    ///
    /// # Errors
    ///
    /// That the connection failed.
    pub fn next_event(&mut self) -> Result<WatchEvent, ClientError> {
        let event = match self.events.pop_front() {
            Some(event) => event,
            None => loop {
                if let Line::Event { event } = self.connection.receive::<Line>(Deadline::NEVER)? {
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

    /// The same, with a vnet header of 24 bytes: there is room for what is in a UDP tunnel.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn attach_with_tunnel_vnet(
        &mut self,
        tunnel: impl Into<Address>,
    ) -> Result<OwnedFd, ClientError> {
        self.attach_as(&Attach::new(tunnel).vnet(true).vnet_size(24))
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::{UnixListener, UnixStream},
        thread,
    };

    use memtun_proto::{inject::Inject, take::Take};
    use rustix::net::listen;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// A socket, and the folder that it is in.
    fn listening() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    /// A client of a daemon that greets, and does something with the connection.
    fn greeted(
        then: impl FnOnce(BufReader<UnixStream>) + Send + 'static,
    ) -> (Client, thread::JoinHandle<()>) {
        let (_folder, path, listener) = listening();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{{\"memtun\":\"0\",\"protocol\":{PROTOCOL}}}").unwrap();
            then(BufReader::new(stream));
        });
        let mut client = Client::connect(&path).unwrap();
        client.set_patience(Some(SHORT));
        (client, daemon)
    }

    #[track_caller]
    fn is_unresponsive<T: std::fmt::Debug>(result: Result<T, ClientError>, wanted: Duration) {
        let error = result.unwrap_err();
        let ClientError::Unresponsive { path, after } = &error else { panic!("{error}") };
        assert_eq!((path.file_name(), *after), (Some("control".as_ref()), wanted));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    /// Such a daemon has been stopped: the kernel accepts for it, as long as its backlog has room.
    #[test]
    fn daemon_that_accepts_nobody_is_given_up() {
        let (_folder, path, listener) = listening();
        is_unresponsive(Client::connect_by(&path, Deadline::after(Some(SHORT))), SHORT);
        // The one above is still in the backlog.
        listen(&listener, 0).unwrap();
        is_unresponsive(Client::connect_by(&path, Deadline::after(Some(SHORT))), SHORT);
    }

    #[test]
    fn daemon_that_is_slow_to_start_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let client = thread::spawn({
            let path = path.clone();
            move || Client::connect_within(&path, Duration::MAX).map(drop)
        });
        let listener = UnixListener::bind(&path).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{{\"memtun\":\"0\",\"protocol\":{PROTOCOL}}}").unwrap();
        client.join().unwrap().unwrap();
    }

    #[test]
    fn answer_has_the_time_of_its_call_and_some_more() {
        for (wait, after) in [(Duration::ZERO, SHORT), (SHORT, SHORT * 2)] {
            let (mut client, daemon) = greeted(|stream| {
                let calls: Vec<String> = stream.lines().map_while(Result::ok).collect();
                assert_eq!(calls.len(), 1, "then the client closes the connection");
            });
            is_unresponsive(client.call(&Take::new("tun0").timeout(wait)), after);
            assert!(matches!(client.call(&List::default()), Err(ClientError::Closed)));
            daemon.join().unwrap();
        }
    }

    #[test]
    fn daemon_that_reads_nothing_or_answers_nothing_is_given_up() {
        let (go_on, waiting) = std::sync::mpsc::channel::<()>();
        let (mut client, daemon) = greeted(move |stream| {
            let _disconnected = waiting.recv();
            drop(stream);
        });
        let large = vec![0x45; 4 << 20];
        is_unresponsive(client.call(&Inject::new("tun0", large)), SHORT);
        drop(go_on);
        daemon.join().unwrap();

        let (mut client, daemon) = greeted(|stream| {
            let mut stream = stream.into_inner();
            // Until the client closes the connection.
            while stream.write_all(b"{\"event\":{}}\n").is_ok() {}
        });
        is_unresponsive(client.call(&List::default()), SHORT);
        daemon.join().unwrap();
    }
}
