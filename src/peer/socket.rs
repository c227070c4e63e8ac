//! A `SOCK_SEQPACKET` socket as the peer of a tunnel: one message is one datagram, each way, untouched.
//!
//! # Theory of operation
//!
//! What clients write stays in the tunnel's queue until the socket takes it: a notification makes whoever caused it move
//! datagrams from the queue to the socket, one thread at a time, so their order is kept and the queue's limits hold. When the
//! socket is full that thread leaves, and the peer's own thread goes on when there is room. When the tunnel is gone and
//! its queue empty, the socket is shut down, which the harness sees as the end of it.
//!
//! A second thread injects what the harness sends. What cannot be delivered, for a full queue or a tunnel that is down, is
//! dropped and counted, as on a wire: a harness that wants to know uses `inject`.
//!
//! An empty message would look like the end to its reader, so an empty datagram is dropped and counted too.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, setsockopt, shutdown,
        socketpair, sockopt,
    },
};
use tracing::debug;

use crate::{
    core::{CommandError, TunnelId},
    hub::{Hub, Peer},
};

/// Room in the socket, each way. The kernel cuts it to `net.core.wmem_max`.
const SOCKET_BUFFER: usize = 1 << 20;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The tunnel does not take it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The kernel has no socket or thread for it.
    #[error("making a socket for the tunnel: {0}")]
    System(#[from] io::Error),
}

struct SocketPeer {
    hub: Arc<Hub>,
    tunnel: TunnelId,
    socket: OwnedFd,
    /// Notifications that have not been acted upon; whoever makes it more than 0 moves datagrams until it is 0 again.
    notifications: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Taken from the queue, and not taken by the socket yet.
    stuck: Option<Bytes>,
    /// The socket is full: the peer's own thread is to go on.
    is_full: bool,
    closed: bool,
}

/// Gives a tunnel a socket as its peer, and returns the harness's end.
///
/// # Errors
///
/// As [`AttachError`] says.
pub fn attach(hub: &Arc<Hub>, tunnel: TunnelId) -> Result<OwnedFd, AttachError> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER).map_err(io::Error::from)?;
    }
    let peer = Arc::new(SocketPeer {
        hub: Arc::clone(hub),
        tunnel,
        socket: ours,
        notifications: AtomicUsize::new(0),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let id = hub.add_peer(tunnel, Arc::clone(&peer) as Arc<dyn Peer>)?;
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(body)
    };
    let spawned = spawn("attach-out", {
        let peer = Arc::clone(&peer);
        Box::new(move || peer.send_when_there_is_room())
    })
    .and_then(|_| {
        let peer = Arc::clone(&peer);
        spawn(
            "attach-in",
            Box::new(move || {
                peer.inject_all();
                peer.close();
                peer.hub.remove_peer(id);
            }),
        )
    });
    if let Err(error) = spawned {
        peer.close();
        hub.remove_peer(id);
        return Err(error.into());
    }
    Ok(theirs)
}

impl Peer for SocketPeer {
    fn notify(&self) {
        if self.notifications.fetch_add(1, Ordering::AcqRel) == 0 {
            self.send_all();
        }
    }
}

impl SocketPeer {
    /// Moves datagrams from the queue to the socket until there is none, or no room. Run by one thread at a time: the one
    /// that found `notifications` at 0, and after it, if the socket got full, the peer's own.
    fn send_all(&self) {
        loop {
            let seen = self.notifications.load(Ordering::Acquire);
            while let Some(datagram) = self.next() {
                let sent = send(
                    self.socket.as_raw_fd(),
                    &datagram,
                    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                );
                match sent {
                    Ok(_) => {}
                    Err(Errno::EINTR) => self.lock().stuck = Some(datagram),
                    Err(Errno::EAGAIN) => {
                        let mut state = self.lock();
                        state.stuck = Some(datagram);
                        state.is_full = true;
                        self.changed.notify_all();
                        return;
                    }
                    Err(Errno::EMSGSIZE | Errno::ENOBUFS) => self.count_drop(&datagram),
                    // The harness has closed its end. The datagram was on its way to it.
                    Err(_) => return,
                }
            }
            if self.hub.with(|core| core.tunnel(self.tunnel).is_none()) {
                self.close();
                return;
            }
            if self.notifications.fetch_sub(seen, Ordering::AcqRel) == seen {
                return;
            }
        }
    }

    fn next(&self) -> Option<Bytes> {
        let stuck = self.lock().stuck.take();
        if stuck.is_some() {
            return stuck;
        }
        loop {
            let payload = self.hub.with(|core| core.take(self.tunnel))?.payload;
            if !payload.is_empty() {
                return Some(payload);
            }
            self.count_drop(&payload);
        }
    }

    fn count_drop(&self, datagram: &Bytes) {
        let length = datagram.len();
        self.hub.with(|core| core.count_peer_drop(self.tunnel, length));
    }

    /// The body of the peer's own thread, until the socket is closed.
    fn send_when_there_is_room(&self) {
        let mut state = self.lock();
        while !state.closed {
            if !std::mem::take(&mut state.is_full) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let mut files = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            // Interrupted or failed, the send says what is the matter.
            let _ready = poll(&mut files, PollTimeout::NONE);
            self.send_all();
            state = self.lock();
        }
    }

    /// Injects what the harness sends, until it closes its end or the tunnel is gone.
    fn inject_all(&self) {
        // Longer than any datagram that can be injected, so that one that is too long is seen to be.
        let mut buffer = vec![0; 1 << 17];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            let datagram = Bytes::copy_from_slice(&buffer[..length]);
            match self.hub.with(|core| core.inject_from_peer(self.tunnel, datagram.into())) {
                Err(CommandError::UnknownTunnel(_)) => return,
                Err(error) => {
                    debug!(tunnel = self.tunnel.0, %error, "a datagram from an attached socket was dropped");
                }
                Ok(_) => {}
            }
        }
    }

    /// Ends both threads, and lets the harness see the end.
    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        // It fails only where the harness has closed its end.
        let _closed = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
