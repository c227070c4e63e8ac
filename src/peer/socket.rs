//! A `SOCK_SEQPACKET` socket as the peer of a tunnel: one message is one datagram, each way, untouched.
//!
//! Two threads serve it for as long as the harness keeps its end open. What cannot be delivered to the client, for a
//! full queue or a tunnel that is down, is dropped and counted, as on a wire: a harness that wants to know uses
//! `inject`. An empty message ends the connection for its reader, so an empty datagram is not forwarded.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, OnceLock},
    thread,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socketpair, sockopt,
    },
};
use tracing::debug;

use crate::{
    control::Outbox,
    core::{CommandError, Datagram, PeerId, TunnelId, Wrap},
    hub::{Hub, Peer},
};

/// Bytes that may wait for a harness that does not read; what comes then is dropped.
const OUTBOX_LIMIT: usize = 16 << 20;
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
    System(#[from] std::io::Error),
}

struct SocketPeer {
    hub: Arc<Hub>,
    outbox: Arc<Outbox>,
    id: OnceLock<PeerId>,
}

/// Gives a tunnel a socket as its peer, and returns the harness's end.
///
/// # Errors
///
/// As [`AttachError`] says.
pub fn attach(hub: &Arc<Hub>, tunnel: TunnelId) -> Result<OwnedFd, AttachError> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(std::io::Error::from)?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER).map_err(std::io::Error::from)?;
    }
    let reader = ours.try_clone()?;
    let outbox = Outbox::new(ours, OUTBOX_LIMIT);
    let peer = Arc::new(SocketPeer {
        hub: Arc::clone(hub),
        outbox: Arc::clone(&outbox),
        id: OnceLock::new(),
    });

    thread::Builder::new().name("attach-out".to_owned()).spawn({
        let outbox = Arc::clone(&outbox);
        move || outbox.run()
    })?;
    let added = hub.add_peer(tunnel, Arc::clone(&peer) as Arc<dyn Peer>).map_err(AttachError::from);
    let spawned = added.and_then(|id| {
        // Datagrams that were forwarded before this were not refused, so none was to be counted.
        let _first = peer.id.set(id);
        let hub = Arc::clone(hub);
        let outbox = Arc::clone(&outbox);
        let thread = thread::Builder::new().name("attach-in".to_owned());
        let spawned = thread.spawn(move || {
            inject_all(&hub, tunnel, &reader);
            hub.remove_peer(id);
            outbox.close();
        });
        spawned.map_err(|error| {
            peer.hub.remove_peer(id);
            AttachError::from(error)
        })
    });
    if let Err(error) = spawned {
        outbox.close();
        return Err(error);
    }
    Ok(theirs)
}

impl Peer for SocketPeer {
    fn forward(&self, datagram: Datagram) {
        if datagram.payload.is_empty() {
            return;
        }
        let length = datagram.payload.len();
        if self.outbox.try_send(datagram.payload).is_err()
            && let Some(id) = self.id.get()
        {
            self.hub.with(|core| core.count_peer_drop(*id, length));
        }
    }
}

/// Injects what the harness sends, until it closes its end or the tunnel is gone.
fn inject_all(hub: &Hub, tunnel: TunnelId, socket: &OwnedFd) {
    // Longer than any datagram that can be injected, so that one that is too long is seen to be.
    let mut buffer = vec![0; 1 << 17];
    loop {
        let length = match recv(socket.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let datagram = Bytes::copy_from_slice(&buffer[..length]);
        match hub.with(|core| core.inject(tunnel, datagram, Wrap::Raw)) {
            Err(CommandError::UnknownTunnel(_)) => return,
            Err(error) => {
                debug!(tunnel = tunnel.0, %error, "a datagram from an attached socket was dropped")
            }
            Ok(_) => {}
        }
    }
}
