//! A `SOCK_SEQPACKET` socket as the peer of a tunnel: one message is one datagram, each way.
//!
//! # Theory of operation
//!
//! What clients write stays in the tunnel's queue until the socket takes it. The thread that wrote is notified, and moves datagrams
//! from the queue to the socket. One thread does so at a time, which keeps their order, and the queue's limits hold. When the
//! socket is full that thread leaves, and the peer's own thread goes on when there is room. When the tunnel is gone and its queue
//! is empty, the socket is shut down, and the harness reads the end. When the harness closes its end, a datagram that found no room
//! goes back to the queue.
//!
//! A second thread injects what the harness sends. A harness that shuts its sending half down still gets what the client
//! writes. What cannot be delivered, for a full queue or a tunnel that is down, is
//! dropped and counted, as on a wire: a harness that wants to know uses `inject`.
//!
//! The peer does what a client's vnet header asks for before the harness gets the datagram, which may become several messages. If
//! that cannot be done, the datagram is dropped and counted, as the kernel does. A harness may ask for the vnet header: then the
//! header stands in front of each message, and the harness does what it asks for. In the other direction the client does, as for
//! any injected datagram.
//!
//! An empty message would look like the end of the socket to its reader. So an empty datagram is dropped and counted too, unless it
//! has a vnet header.

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
    abi::virtio_net::VnetHeader,
    core::{
        Address, Charge, CommandError, Datagram, Mode, Resource, Tunnel, TunnelId, User, input,
        offload::{self, Finished},
    },
    hub::{Description, Hub, Peer},
    planted,
};

/// Room in the socket, each way. The kernel cuts it to `net.core.wmem_max`.
const SOCKET_BUFFER: usize = 1 << 20;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The tunnel does not take it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The user has all that one may have.
    #[error(
        "uid {uid} has all the {what} that one user may have, or nothing is left; close other attached sockets"
    )]
    TooMany {
        /// The user.
        uid: u32,
        /// What there is no more of.
        what: &'static str,
    },
    /// The kernel has no socket or thread for it.
    #[error("making a socket for the tunnel: {0}")]
    System(#[from] io::Error),
}

struct SocketPeer {
    hub: Arc<Hub>,
    tunnel: TunnelId,
    mode: Mode,
    /// A vnet header of so many bytes stands in front of each message.
    vnet_size: Option<usize>,
    socket: OwnedFd,
    /// Notifications that have not been acted upon; whoever makes it more than 0 moves datagrams until it is 0 again.
    notifications: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
    /// What it takes of a user's share.
    charges: [Charge; 2],
}

/// Bytes that an attached socket takes: a datagram that waits each way, and its buffer.
const MEMORY: usize = 256 << 10;

/// A message for the harness, and the datagram that it carries.
struct Message {
    bytes: Bytes,
    datagram: Datagram,
}

#[derive(Default)]
struct State {
    /// Taken from the queue, and not taken by the socket yet.
    stuck: Option<Message>,
    /// The rest of a datagram that is being cut.
    segments: Option<Finished>,
    /// The socket is full: the peer's own thread is to go on.
    is_full: bool,
    closed: bool,
}

/// Gives a tunnel a socket as its peer, in the share of a user, and returns the harness's end; its messages may have a vnet header in
/// front.
///
/// # Errors
///
/// As [`AttachError`] says.
pub(crate) fn attach(
    hub: &Arc<Hub>,
    user: &Arc<User>,
    tunnel: TunnelId,
    vnet_size: Option<usize>,
) -> Result<OwnedFd, AttachError> {
    let charge = |resource: Resource, amount| {
        let uid = user.uid();
        let too_many = |_| AttachError::TooMany { uid, what: resource.word() };
        user.charge_outside(resource, amount).map_err(too_many)
    };
    let charges = [charge(Resource::Descriptors, 1)?, charge(Resource::Memory, MEMORY)?];
    let mode = hub.view(|core| core.tunnel(tunnel).map(Tunnel::mode));
    let mode = mode.ok_or(CommandError::UnknownTunnel(Address::Id(tunnel)))?;
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER).map_err(io::Error::from)?;
    }
    let peer = Arc::new(SocketPeer {
        hub: Arc::clone(hub),
        tunnel,
        mode,
        vnet_size,
        socket: ours,
        notifications: AtomicUsize::new(0),
        state: Mutex::default(),
        changed: Condvar::new(),
        charges,
    });
    let id = hub.add_peer(tunnel, Arc::clone(&peer) as Arc<dyn Peer>)?;
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(body)
    };
    let spawned = spawn("attach-out", {
        let peer = Arc::clone(&peer);
        Box::new(move || {
            if peer.hub.contain(|| peer.send_when_there_is_room()).is_none() {
                // The other thread sees that, and leaves.
                peer.close();
            }
        })
    })
    .and_then(|_| {
        let peer = Arc::clone(&peer);
        spawn(
            "attach-in",
            Box::new(move || {
                // It leaves, whether it has panicked or not.
                if peer.hub.contain(|| peer.inject_all()).is_some() {
                    peer.wait_for_end();
                }
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

    fn part(&self) {
        self.close();
    }

    fn description(&self) -> Description {
        Description { kind: "socket", details: Vec::new() }
    }
}

impl SocketPeer {
    /// Moves datagrams from the queue to the socket until there is none, or no room. Run by one thread at a time: the one
    /// that found `notifications` at 0, and after it, if the socket got full, the peer's own.
    fn send_all(&self) {
        loop {
            let seen = self.notifications.load(Ordering::Acquire);
            while let Some(message) = self.next() {
                let sent = send(
                    self.socket.as_raw_fd(),
                    &message.bytes,
                    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                );
                match sent {
                    Ok(_) => {}
                    Err(Errno::EINTR) => self.keep_stuck(message, false),
                    Err(Errno::EAGAIN) => return self.keep_stuck(message, true),
                    Err(Errno::EMSGSIZE | Errno::ENOBUFS) => self.count_drop(&message.bytes),
                    // The harness has closed its end.
                    Err(_) => return self.keep_stuck(message, false),
                }
            }
            if self.hub.view(|core| core.tunnel(self.tunnel).is_none()) {
                self.close();
                return;
            }
            if self.notifications.fetch_sub(seen, Ordering::AcqRel) == seen {
                return;
            }
        }
    }

    /// A message is to be sent again; where that cannot be, its datagram goes back.
    fn keep_stuck(&self, message: Message, is_full: bool) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            self.put_back(vec![message.datagram]);
            return;
        }
        state.stuck = Some(message);
        state.is_full = is_full;
        self.changed.notify_all();
    }

    /// The next message.
    fn next(&self) -> Option<Message> {
        // Held while taking, so that nothing is taken once it is closed.
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        if let Some(stuck) = state.stuck.take() {
            return Some(stuck);
        }
        if let Some(segment) = state.segments.as_mut().and_then(Iterator::next) {
            return Some(self.message(segment));
        }
        state.segments = None;
        loop {
            let datagram = self.hub.handle(input::Take { tunnel: self.tunnel })?;
            if datagram.payload.is_empty() && self.vnet_size.is_none() {
                self.count_drop(&datagram.payload);
            } else if self.has_room_for_header(&datagram) {
                return Some(self.message(datagram));
            } else if let Some(first) = self.finish(datagram, &mut state.segments) {
                return Some(first);
            }
        }
    }

    /// The vnet header of a datagram, if any, can go before it.
    fn has_room_for_header(&self, datagram: &Datagram) -> bool {
        let Some(header) = datagram.vnet() else { return true };
        let needed = if header.is_in_tunnel() { VnetHeader::TUNNEL_SIZE } else { VnetHeader::SIZE };
        self.vnet_size.is_some_and(|size| size >= needed)
    }

    fn message(&self, datagram: Datagram) -> Message {
        let bytes = match self.vnet_size {
            None => datagram.payload.clone(),
            Some(size) => {
                let header = datagram.vnet().unwrap_or_default().to_bytes();
                [&header[..size], &datagram.payload].concat().into()
            }
        };
        Message { bytes, datagram }
    }

    /// Does what a vnet header asks for, and gives the first segment; the others are next.
    fn finish(&self, datagram: Datagram, rest: &mut Option<Finished>) -> Option<Message> {
        let payload = datagram.payload.clone();
        match offload::finish(datagram, self.mode) {
            Ok(mut segments) => {
                let first = segments.next()?;
                *rest = Some(segments);
                Some(self.message(first))
            }
            Err(error) => {
                debug!(tunnel = self.tunnel.0, %error, "a written datagram was dropped");
                self.count_drop(&payload);
                None
            }
        }
    }

    /// In whose memory it is.
    fn user(&self) -> &Arc<User> {
        self.charges[0].user()
    }

    fn count_drop(&self, datagram: &Bytes) {
        let length = datagram.len();
        self.hub.handle(input::CountPeerDrop { tunnel: self.tunnel, length });
    }

    /// The body of the peer's own thread, until the socket is closed.
    fn send_when_there_is_room(&self) {
        let mut state = self.lock();
        planted::panic_at("attach-out");
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

    /// Waits until the harness has closed its end altogether, or this one has been closed.
    fn wait_for_end(&self) {
        loop {
            // Nothing but the end, which is always told.
            let mut files = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
            if poll(&mut files, PollTimeout::NONE) != Err(Errno::EINTR) {
                return;
            }
        }
    }

    /// Injects what the harness sends, until it closes its end or its sending half, or the tunnel is gone.
    fn inject_all(&self) {
        // Longer than any datagram that can be injected, so that one that is too long is seen to be.
        let mut buffer = vec![0; 1 << 17];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            planted::panic_at("attach-in");
            let datagram = self.datagram(&buffer[..length]);
            match self.hub.handle(input::InjectFromPeer { tunnel: self.tunnel, datagram }) {
                Err(CommandError::UnknownTunnel(_)) => return,
                Err(error) => {
                    debug!(tunnel = self.tunnel.0, %error, "a datagram from an attached socket was dropped");
                }
                Ok(_) => {}
            }
        }
    }

    /// The datagram in a message; one that is too short for its vnet header is empty, and will be refused.
    fn datagram(&self, message: &[u8]) -> Datagram {
        let Some((header, payload)) = message.split_at_checked(self.vnet_size.unwrap_or(0)) else {
            return Datagram::default();
        };
        // A header that asks for nothing is none.
        let vnet = VnetHeader::read(header).filter(|vnet| *vnet != VnetHeader::default());
        Datagram::from(Bytes::copy_from_slice(payload)).with_vnet(vnet)
    }

    /// Ends both threads, and lets the harness see the end. What was taken for it and not sent goes back.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let stuck = state.stuck.take().map(|message| message.datagram);
        let segments = state.segments.take();
        drop(state);
        self.put_back(stuck.into_iter().chain(segments.into_iter().flatten()).collect());
        self.changed.notify_all();
        // It fails only where the harness has closed its end.
        let _closed = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Gives the tunnel back what could not be sent, oldest first.
    fn put_back(&self, datagrams: Vec<Datagram>) {
        let (tunnel, uid) = (self.tunnel, self.user().uid());
        self.hub.handle(input::PutBack { tunnel, datagrams, uid });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
