//! What the harness does beside injecting: taking, and giving tunnels a peer. A peer that stands in its place takes too.

use alloc::{sync::Arc, vec::Vec};

use super::{
    Address, Core, Datagram, DropReason, Event, Interface, Output, Peer, PeerId, TunnelId, User,
    offload::OffloadError, settings::SettingError,
};
use crate::abi::tun;

/// Why the harness does not get what it asked of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum CommandError {
    /// No tunnel answers to the address.
    #[error("no tunnel {0}; 'memtun list' shows those there are")]
    UnknownTunnel(Address),
    /// Several scopes have a tunnel of that name.
    #[error(
        "tunnel {name} is ambiguous; say {name}@SCOPE with one of the scopes {scopes:?}, or #ID"
    )]
    AmbiguousTunnel {
        /// The name.
        name: tun::Name,
        /// The scopes that have it.
        scopes: Vec<u64>,
    },
    /// No client has the tunnel open.
    #[error("tunnel {0} has no open file: no client would read the datagram")]
    NotAttached(tun::Name),
    /// No datagram gets through to the client.
    #[error(
        "tunnel {0} has no carrier; give it one with 'memtun set {0} carrier on', or let its client do so"
    )]
    NoCarrier(tun::Name),
    /// All its queues are detached.
    #[error("tunnel {0} has no attached queue: its clients have detached all by TUNSETQUEUE")]
    NoQueue(tun::Name),
    /// The client's filter refuses the datagram.
    #[error("a filter that the client of tunnel {0} has set drops the datagram")]
    Filtered(tun::Name),
    /// The tunnel is down.
    #[error("tunnel {0} is down; bring it up with 'memtun set {0} up'")]
    Down(tun::Name),
    /// The client does not read fast enough.
    #[error(
        "the queue of tunnel {name} is full with {datagrams} datagrams; wait until the client has read some"
    )]
    QueueFull {
        /// The tunnel.
        name: tun::Name,
        /// How many datagrams wait.
        datagrams: usize,
    },
    /// All memory is in use that there is for datagrams, or for those of the client's user.
    #[error(
        "no memory is left for a datagram to tunnel {name} of uid {uid}; see 'memtun limits', --memory and --memory-per-user"
    )]
    NoMemory {
        /// The tunnel.
        name: tun::Name,
        /// The user who opened the file.
        uid: u32,
    },
    /// The datagram has no bytes.
    #[error("the datagram is empty; give at least one byte")]
    EmptyDatagram,
    /// The datagram is too long.
    #[error("the datagram has {length} bytes; at most {limit} can be injected")]
    OversizedDatagram {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A tap takes frames, and this is not something an Ethernet header can be made for.
    #[error(
        "tunnel {0} is a tap and the datagram is neither IPv4 nor IPv6; inject a whole frame with --frame"
    )]
    NotIp(tun::Name),
    /// A tun takes no frames.
    #[error(
        "tunnel {0} is a tun, which carries no frames; leave out --frame and the Ethernet addresses"
    )]
    NotTap(tun::Name),
    /// A client read the datagram with less room than its headers take, and lost it, as on the kernel's tun.
    #[error(
        "the client's read on tunnel {0} had no room for the headers and got EINVAL; the datagram is lost"
    )]
    ReadTooShort(tun::Name),
    /// What the datagram's vnet header asks for cannot be done.
    #[error("memtun cannot do what the vnet header asks for: {0}")]
    BadVnet(#[from] OffloadError),
    /// Somebody else takes the tunnel's datagrams.
    #[error("tunnel {0} has a peer already; 'memtun list' shows it, 'memtun part {0}' removes it")]
    HasPeer(tun::Name),
    /// A setting that the kernel refuses.
    #[error("{0}")]
    BadSetting(#[from] SettingError),
    /// Nobody but the harness takes the tunnel's datagrams.
    #[error("tunnel {0} has no peer; 'memtun list' shows those that have one")]
    NoPeer(tun::Name),
    /// A tunnel cannot be joined to itself.
    #[error("tunnel {0} cannot be its own peer; name two tunnels")]
    SameTunnel(tun::Name),
    /// Only tunnels of one mode can be joined.
    #[error("tunnel {tun} is a tun and {tap} a tap; only tunnels of one mode can be joined")]
    ModesDiffer {
        /// The one that carries IP datagrams.
        tun: tun::Name,
        /// The one that carries frames.
        tap: tun::Name,
    },
    /// The tunnel was deleted.
    #[error("tunnel {0} is gone; a peer needs one that a client can open")]
    Gone(tun::Name),
    /// More was asked for than the tunnel ever keeps.
    #[error("{count} datagrams are more than can be there at once; ask for 1 to {limit}")]
    BadCount {
        /// What was asked for.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many waits.
    #[error("{0} waits are open, the limit; end some first")]
    TooManyWaits(usize),
}

impl CommandError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownTunnel(_) => "unknown-tunnel",
            Self::AmbiguousTunnel { .. } => "ambiguous-tunnel",
            Self::NotAttached(_) => "not-attached",
            Self::Down(_) => "down",
            Self::NoCarrier(_) => "no-carrier",
            Self::NoQueue(_) => "no-queue",
            Self::Filtered(_) => "filtered",
            Self::BadSetting(_) => "bad-setting",
            Self::QueueFull { .. } => "queue-full",
            Self::NoMemory { .. } => "no-memory",
            Self::EmptyDatagram => "empty-datagram",
            Self::OversizedDatagram { .. } => "oversized-datagram",
            Self::NotIp(_) => "not-ip",
            Self::NotTap(_) => "not-tap",
            Self::ReadTooShort(_) => "read-too-short",
            Self::BadVnet(_) => "bad-vnet",
            Self::HasPeer(_) => "has-peer",
            Self::NoPeer(_) => "no-peer",
            Self::SameTunnel(_) => "same-tunnel",
            Self::ModesDiffer { .. } => "modes-differ",
            Self::Gone(_) => "gone",
            Self::BadCount { .. } => "bad-count",
            Self::TooManyWaits(_) => "too-many-waits",
        }
    }
}

/// Commands of the harness.
impl Core {
    /// Removes the oldest datagram that clients wrote.
    pub(super) fn take(&mut self, from: TunnelId) -> Option<Datagram> {
        let tunnel = self.tunnels.get_mut(&from)?;
        let datagram = tunnel.written.pop();
        if tunnel.gone {
            self.end_if_spent(from);
        }
        datagram
    }

    /// Puts back what was taken last, and did not get to whom it was taken for; in a user's memory.
    pub(super) fn put_back(&mut self, to: TunnelId, datagram: Datagram, user: &Arc<User>) {
        let Some(tunnel) = self.tunnels.get_mut(&to) else { return };
        let (name, length) = (tunnel.name, datagram.payload.len());
        if tunnel.written.unpop(datagram, user) {
            return;
        }
        tunnel.counters.from_client_dropped.add(length);
        let reason = DropReason::Memory;
        self.event(|| Event::Dropped { tunnel: to, name, reason, length });
    }

    /// Gives a tunnel a peer, which is told whenever there is something to [`take`](Self::take): now too, if there is.
    ///
    /// While a tunnel has a peer, no wait of the harness takes from it.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::HasPeer`].
    pub(super) fn set_peer(&mut self, of: TunnelId, peer: PeerId) -> Result<(), CommandError> {
        let Some(tunnel) = self.tunnels.get_mut(&of) else {
            return Err(CommandError::UnknownTunnel(Address::Id(of)));
        };
        if tunnel.peer.is_some() || tunnel.interface == Interface::Bridge {
            return Err(CommandError::HasPeer(tunnel.name));
        }
        tunnel.peer = Some(Peer::Outside(peer));
        if tunnel.written.available() > 0 {
            self.outputs.push(Output::Notify(peer));
        }
        Ok(())
    }

    /// The peer has left; what clients write is for the harness's waits again.
    pub(super) fn clear_peer(&mut self, peer: PeerId) {
        let outside = Some(Peer::Outside(peer));
        for id in self.tunnels.which(|tunnel| tunnel.peer == outside) {
            if let Some(tunnel) = self.tunnels.get_mut(&id) {
                tunnel.peer = None;
            }
        }
    }

    /// A datagram that was taken for a peer is lost: it is longer than the peer can carry.
    pub(super) fn count_peer_drop(&mut self, of: TunnelId, length: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return };
        tunnel.counters.from_client_dropped.add(length);
        let name = tunnel.name;
        self.event(|| Event::Dropped { tunnel: of, name, reason: DropReason::PeerLimit, length });
    }
}
