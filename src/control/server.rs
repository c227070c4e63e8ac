//! The socket: binding it, accepting harnesses, reading their lines.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use memtun_proto::{
    Failure,
    error::code,
    line::{Greeting, Line, MAX_LINE, PROTOCOL},
};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Gid,
};
use tracing::{debug, info, warn};

use super::session::{Session, encode};
use crate::{
    core::{Bound, Charge, Exhausted, Resource, User, input},
    hub::Hub,
    planted,
};

/// Where the socket is, and who may use it.
#[derive(Clone, Debug)]
pub(crate) struct SocketOptions {
    /// Its path.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its group.
    pub group: Option<u32>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BindError {
    /// A daemon listens there.
    #[error(
        "control socket {0} is in use by another daemon; stop that one, or give another path with --control"
    )]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("{0} exists and is not a socket; remove it, or give another path with --control")]
    NotASocket(PathBuf),
    /// There is no folder for it.
    #[error(
        "control socket {path}: there is no folder {folder}; make it, or give another path with --control"
    )]
    NoFolder {
        /// The path.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// The socket cannot be bound.
    #[error("binding control socket {path}: {source}; give a path you may write to with --control")]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Mode or group could not be set.
    #[error("setting mode and group of control socket {path}: {source}")]
    Permission {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The bound socket.
pub(crate) struct Server {
    listener: UnixListener,
    /// `None` for a socket that was inherited, which is not ours to remove.
    path: Option<PathBuf>,
    removed: AtomicBool,
}

impl Server {
    /// Binds the socket. A path that a dead daemon left is replaced.
    ///
    /// # Errors
    ///
    /// As [`BindError`] says.
    pub(crate) fn bind(options: &SocketOptions) -> Result<Self, BindError> {
        let path = &options.path;
        let failed = |source| BindError::Bind { path: path.clone(), source };
        let group = options.group.map(Gid::from_raw);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(BindError::NoFolder { path: path.clone(), folder: folder.to_owned() });
        }
        remove_dead_socket(path)?;
        // Nobody may connect before mode and group are set, so it is bound for the owner alone.
        let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        nix::sys::stat::umask(mask);
        let server = Self {
            listener: bound.map_err(failed)?,
            path: Some(path.clone()),
            removed: AtomicBool::new(false),
        };
        let denied = |source| BindError::Permission { path: path.clone(), source };
        if group.is_some() {
            nix::unistd::chown(path, None, group).map_err(|errno| denied(errno.into()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(options.mode)).map_err(denied)?;
        Ok(server)
    }

    /// Takes a socket that the service manager bound.
    #[must_use]
    pub(crate) fn inherited(listener: UnixListener) -> Self {
        Self { listener, path: None, removed: AtomicBool::new(false) }
    }

    /// Accepts harnesses for as long as the daemon lives; the body of the control thread.
    pub(crate) fn run(&self, hub: &Arc<Hub>) {
        let connections = Arc::new(Connections::default());
        for stream in self.listener.incoming() {
            match stream {
                Ok(stream) => {
                    planted::panic_at("control");
                    accept(stream, hub, &connections);
                }
                Err(error) => {
                    warn!(%error, "accepting on the control socket failed, waiting until a connection closes");
                    connections.wait_for_change();
                }
            }
        }
    }

    /// Removes the path. Dropping the server does it too, but its thread may hold it until the process ends.
    pub(crate) fn remove(&self) {
        if let Some(path) = &self.path
            && !self.removed.swap(true, Ordering::Relaxed)
            && let Err(error) = fs::remove_file(path)
        {
            debug!(path = %path.display(), %error, "removing the control socket failed, ignoring");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remove();
    }
}

fn remove_dead_socket(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            info!(path = %path.display(), "replacing the control socket of a daemon that has ended");
            fs::remove_file(path)
                .map_err(|source| BindError::Bind { path: path.to_owned(), source })
        }
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(source) => Err(BindError::Bind { path: path.to_owned(), source }),
    }
}

/// Tells when a connection has closed.
#[derive(Default)]
struct Connections {
    closed: Mutex<()>,
    changed: Condvar,
}

impl Connections {
    /// Counts one more for a user; or says why not.
    fn open(self: &Arc<Self>, user: &Arc<User>) -> Result<Slot, Failure> {
        let charge = user.charge_outside(Resource::Connections, 1).map_err(|exhausted| {
            let Bound { all, user: share } = user.budget().bound(Resource::Connections);
            let (limit, whose) = match exhausted {
                Exhausted::Share => (share, format!("the limit of uid {}", user.uid())),
                Exhausted::All => (all, "the limit".to_owned()),
            };
            let message = format!("{limit} connections are open, {whose}; close one first");
            Failure::new(code::TOO_MANY_CONNECTIONS, message)
        })?;
        Ok(Slot { connections: Arc::clone(self), charge: Some(charge) })
    }

    /// Waits until one closes, or for a while: what was lacking may have been freed elsewhere.
    fn wait_for_change(&self) {
        let waited = self.changed.wait_timeout(self.lock(), Duration::from_secs(1));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, counted until this is dropped.
struct Slot {
    connections: Arc<Connections>,
    charge: Option<Charge>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.charge = None;
        drop(self.connections.lock());
        self.connections.changed.notify_all();
    }
}

fn accept(stream: UnixStream, hub: &Arc<Hub>, connections: &Arc<Connections>) {
    // Of a socket that is not connected any more there is nobody to serve.
    let Ok(peer) = getsockopt(&stream, PeerCredentials) else { return };
    let user = hub.handle(input::FindUser { uid: peer.uid() });
    let slot = match connections.open(&user) {
        Ok(slot) => slot,
        Err(failure) => return refuse(stream, failure),
    };
    let hub = Arc::clone(hub);
    let spawned = thread::Builder::new().name("harness".to_owned()).spawn(move || {
        let _slot = slot;
        if let Some(Err(error)) = hub.contain(|| serve(stream, Arc::clone(&hub), user)) {
            debug!(%error, "a harness's connection ended");
        }
    });
    if let Err(error) = spawned {
        warn!(%error, "starting a thread for a harness failed, ignoring");
    }
}

/// Says why before the connection is closed. A harness that is gone already does not need to know.
fn refuse(mut stream: UnixStream, failure: Failure) {
    let line = Line::<(), ()>::Error { id: serde_json::Value::Null, error: failure };
    let _gone = stream.write_all(&encode(&line));
}

fn serve(stream: UnixStream, hub: Arc<Hub>, user: Arc<User>) -> io::Result<()> {
    let session = Session::new(hub, stream.try_clone()?.into(), user);
    let closing = Closing(&session);
    let sender = {
        let session = Arc::clone(&session);
        let run = move || {
            let outbox = session.outbox();
            if session.hub().contain(|| outbox.run()).is_none() {
                // The harness sees the end of its connection, and so does the thread that reads from it.
                outbox.close();
            }
        };
        thread::Builder::new().name("outbox".to_owned()).spawn(run)?
    };
    let greeting = Greeting { memtun: env!("CARGO_PKG_VERSION").to_owned(), protocol: PROTOCOL };
    // If the harness is gone already, reading says so.
    let _gone = session.outbox().send(encode(&greeting), None);
    let read = read_lines(BufReader::new(stream), &session);
    drop(closing);
    // It contains its panics.
    let _ended = sender.join();
    read
}

/// Closes a session, however its thread leaves it.
struct Closing<'a>(&'a Session);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Bytes of a line that most are shorter than.
const USUAL_LINE: usize = 8 << 10;

fn read_lines(mut reader: BufReader<UnixStream>, session: &Arc<Session>) -> io::Result<()> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(());
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if line.len() + part.len() > MAX_LINE {
            too_long = true;
        } else {
            line.extend_from_slice(part);
        }
        let consumed = part.len() + usize::from(end.is_some());
        reader.consume(consumed);
        if end.is_none() {
            continue;
        }
        if too_long {
            let message =
                format!("a line has more than {MAX_LINE} bytes, the limit; it is skipped");
            session.refuse(&serde_json::Value::Null, Failure::new(code::LINE_TOO_LONG, message));
        } else if !line.trim_ascii().is_empty() {
            session.handle_line(&line);
        }
        line.clear();
        // The longest line of a connection that goes on is not kept.
        line.shrink_to(USUAL_LINE);
        too_long = false;
    }
}
