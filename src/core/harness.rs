//! What the harness does: inject, take, set; and the two ways of a datagram.

use bytes::Bytes;

use super::{
    Address, Core, Datagram, DropReason, Event, FileId, MacAddress, Mode, Output, PeerId, Tunnel,
    TunnelId, datagram,
};
use crate::abi::tun;

/// Why the harness does not get what it asked of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
    /// Somebody else takes the tunnel's datagrams.
    #[error("tunnel {0} has a peer already; close that one first")]
    HasPeer(tun::Name),
    /// More was asked for than the tunnel ever keeps.
    #[error("{count} datagrams can never be there at once; ask for 1 to {limit}")]
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

/// How bytes become a datagram on their way to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wrap {
    /// Untouched.
    #[default]
    Raw,
    /// Untouched, and only to a tap.
    Frame,
    /// On a tap, an Ethernet header is put before an IP datagram; on a tun, untouched.
    Ethernet {
        /// Default: the tunnel's own address.
        source: Option<MacAddress>,
        /// Default: broadcast.
        destination: Option<MacAddress>,
    },
}

/// What became of an injected datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A blocked read got it.
    Read,
    /// It waits in a queue of so many datagrams, itself included.
    Queued(usize),
}

/// Commands of the harness.
impl Core {
    /// Puts a datagram on its way to the client.
    ///
    /// # Errors
    ///
    /// Says why nothing was delivered; a full queue and a read without room for the headers are counted as drops.
    pub fn inject(
        &mut self,
        to: TunnelId,
        bytes: Bytes,
        wrap: Wrap,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let name = tunnel.name;
        if tunnel.files.is_empty() {
            return Err(CommandError::NotAttached(name));
        }
        if !tunnel.up {
            return Err(CommandError::Down(name));
        }
        let payload = wrapped(tunnel, bytes, wrap)?;
        let (length, limit) = (payload.len(), self.limits.datagram);
        if length > limit {
            return Err(CommandError::OversizedDatagram { length, limit });
        }
        let delivery = self.send_to_client(to, payload.into());
        self.settle_waits();
        delivery
    }

    /// Removes the oldest datagram that clients wrote.
    pub fn take(&mut self, from: TunnelId) -> Option<Datagram> {
        let tunnel = self.tunnels.get_mut(&from)?;
        let datagram = tunnel.written.pop();
        if tunnel.gone && tunnel.written.is_empty() {
            self.tunnels.remove(&from);
        }
        datagram
    }

    /// Brings a tunnel up or down. Down, writes get `EIO` and polls no `POLLOUT`; what is queued can still be read.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`].
    pub fn set_link(&mut self, of: TunnelId, up: bool) -> Result<(), CommandError> {
        let Some(tunnel) = self.tunnels.get_mut(&of) else {
            return Err(CommandError::UnknownTunnel(Address::Id(of)));
        };
        if std::mem::replace(&mut tunnel.up, up) != up {
            let name = tunnel.name;
            if up {
                let files = tunnel.files.clone();
                files.iter().for_each(|file| self.wake(*file));
            }
            self.event(|| Event::Link { tunnel: of, name, up });
        }
        Ok(())
    }

    /// Gives a tunnel a peer, which is told whenever there is something to [`take`](Self::take): now too, if there is.
    ///
    /// While a tunnel has a peer, no wait of the harness takes from it.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::HasPeer`].
    pub fn set_peer(&mut self, of: TunnelId, peer: PeerId) -> Result<(), CommandError> {
        let Some(tunnel) = self.tunnels.get_mut(&of) else {
            return Err(CommandError::UnknownTunnel(Address::Id(of)));
        };
        if tunnel.peer.is_some() {
            return Err(CommandError::HasPeer(tunnel.name));
        }
        tunnel.peer = Some(peer);
        if !tunnel.written.is_empty() {
            self.outputs.push(Output::Notify(peer));
        }
        Ok(())
    }

    /// The peer has left; what clients write is for the harness's waits again.
    pub fn clear_peer(&mut self, peer: PeerId) {
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.peer == Some(peer)) {
            tunnel.peer = None;
        }
        self.settle_waits();
    }

    /// Puts a datagram from a tunnel's peer on its way to the client. What is refused is counted as dropped: a peer is
    /// not told.
    ///
    /// # Errors
    ///
    /// As [`inject`](Self::inject).
    pub fn inject_from_peer(
        &mut self,
        to: TunnelId,
        bytes: Bytes,
    ) -> Result<Delivery, CommandError> {
        let length = bytes.len();
        let delivery = self.inject(to, bytes, Wrap::Raw);
        // A full queue and a short read have been counted where they were noticed.
        let counted = matches!(
            delivery,
            Ok(_) | Err(CommandError::QueueFull { .. } | CommandError::ReadTooShort(_))
        );
        if !counted && let Some(name) = self.tunnels.get(&to).map(|tunnel| tunnel.name) {
            self.count_to_client_drop(to, name, DropReason::Refused, length);
        }
        delivery
    }

    /// A datagram that was taken for a peer is lost: it is longer than the peer can carry.
    pub fn count_peer_drop(&mut self, of: TunnelId, length: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return };
        tunnel.counters.from_client_dropped.add(length);
        let name = tunnel.name;
        self.event(|| Event::Dropped { tunnel: of, name, reason: DropReason::PeerLimit, length });
    }
}

/// The two ways of a datagram.
impl Core {
    fn send_to_client(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let (name, mode, framing) = (tunnel.name, tunnel.mode, tunnel.framing());
        let file_id = select_file(tunnel, &datagram).ok_or(CommandError::NotAttached(name))?;
        let file = self.files.get_mut(&file_id).ok_or(CommandError::NotAttached(name))?;
        let length = datagram.payload.len();
        let payload = self.observed.then(|| datagram.payload.clone());

        let delivery = if let Some(read) = file.parked.pop_front() {
            let outcome = file.deliver(&datagram, framing, read.limit);
            let was_read = outcome.is_ok();
            self.outputs.push(Output::Complete(read.id, outcome));
            if !was_read {
                self.count_to_client_drop(to, name, DropReason::ReadTooShort, length);
                return Err(CommandError::ReadTooShort(name));
            }
            Delivery::Read
        } else if file.queue.push(datagram) {
            let queued = file.queue.len();
            self.wake(file_id);
            Delivery::Queued(queued)
        } else {
            let datagrams = file.queue.len();
            self.count_to_client_drop(to, name, DropReason::QueueFull, length);
            return Err(CommandError::QueueFull { name, datagrams });
        };
        if let Some(tunnel) = self.tunnels.get_mut(&to) {
            tunnel.counters.to_client.add(length);
        }
        if let Some(payload) = payload {
            self.outputs.push(Output::Event(Event::ToClient { tunnel: to, name, mode, payload }));
        }
        Ok(delivery)
    }

    pub(super) fn send_to_harness(&mut self, file: FileId, datagram: Datagram) {
        let length = datagram.payload.len();
        let payload = self.observed.then(|| datagram.payload.clone());
        let Some(tunnel) = self.tunnel_of_mut(file) else { return };
        let (id, name, mode) = (tunnel.id, tunnel.name, tunnel.mode);
        tunnel.counters.from_client.add(length);
        if tunnel.written.push(datagram) {
            tunnel.last_writer = Some(file);
            if let Some(peer) = tunnel.peer {
                self.outputs.push(Output::Notify(peer));
            }
        } else {
            tunnel.last_writer = None;
            tunnel.counters.from_client_dropped.add(length);
            self.event(|| Event::Dropped {
                tunnel: id,
                name,
                reason: DropReason::WriteBufferFull,
                length,
            });
        }
        if let Some(payload) = payload {
            self.outputs.push(Output::Event(Event::FromClient { tunnel: id, name, mode, payload }));
        }
    }

    pub(super) fn count_to_client_drop(
        &mut self,
        id: TunnelId,
        name: tun::Name,
        reason: DropReason,
        length: usize,
    ) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counters.to_client_dropped.add(length);
        }
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }
}

/// The bytes a client is to get.
fn wrapped(tunnel: &Tunnel, bytes: Bytes, wrap: Wrap) -> Result<Bytes, CommandError> {
    if bytes.is_empty() {
        return Err(CommandError::EmptyDatagram);
    }
    match (wrap, tunnel.mode) {
        (Wrap::Raw, _) | (Wrap::Frame, Mode::Tap) => Ok(bytes),
        (
            Wrap::Frame
            | Wrap::Ethernet { source: Some(_), .. }
            | Wrap::Ethernet { destination: Some(_), .. },
            Mode::Tun,
        ) => Err(CommandError::NotTap(tunnel.name)),
        (Wrap::Ethernet { .. }, Mode::Tun) => Ok(bytes),
        (Wrap::Ethernet { source, destination }, Mode::Tap) => {
            let (source, destination) =
                (source.unwrap_or(tunnel.hwaddr), destination.unwrap_or(MacAddress::BROADCAST));
            datagram::ethernet_frame(source, destination, &bytes)
                .ok_or(CommandError::NotIp(tunnel.name))
        }
    }
}

/// The queue a to-client datagram goes to: that of its flow, if there are several.
fn select_file(tunnel: &Tunnel, datagram: &Datagram) -> Option<FileId> {
    match tunnel.files[..] {
        [only] => Some(only),
        [] => None,
        ref several => {
            let hash = datagram::flow_hash(&datagram.payload, tunnel.mode);
            let index = hash % several.len() as u64;
            usize::try_from(index).ok().and_then(|index| several.get(index)).copied()
        }
    }
}
