//! What observers see: `watch`, later captures and traces.

use alloc::string::String;

use bytes::Bytes;

use super::{FileId, Mode, TunnelId};
use crate::abi::tun::Name;

/// Something happened. Built only while somebody observes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Event {
    /// A client opened the device.
    Opened {
        /// The file.
        file: FileId,
        /// Process id of the client.
        pid: u32,
        /// Its command name.
        command: String,
    },
    /// A file was closed for the last time.
    Closed {
        /// The file.
        file: FileId,
    },
    /// A file was attached to a tunnel.
    Attached {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// Its mode.
        mode: Mode,
        /// The file.
        file: FileId,
        /// The attach made the tunnel.
        created: bool,
    },
    /// A file left its tunnel.
    Detached {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// The file.
        file: FileId,
        /// The tunnel went with it.
        deleted: bool,
    },
    /// A tunnel was deleted under its open files.
    Deleted {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
    },
    /// A datagram joined a file's queue or was given to a reader.
    ToClient {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// Its mode.
        mode: Mode,
        /// The datagram.
        #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
        payload: Bytes,
    },
    /// A client wrote a datagram.
    FromClient {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// Its mode.
        mode: Mode,
        /// The datagram.
        #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
        payload: Bytes,
    },
    /// The kernel sent a datagram into the link beside a tunnel, and no client got it.
    ToLink {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// Its mode.
        mode: Mode,
        /// The datagram.
        #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
        payload: Bytes,
    },
    /// A datagram was lost.
    Dropped {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// Why.
        reason: DropReason,
        /// Its length in bytes.
        length: usize,
    },
    /// A tunnel went up or down, or its carrier on or off.
    Link {
        /// The tunnel.
        tunnel: TunnelId,
        /// Its name.
        name: Name,
        /// It is up.
        up: bool,
        /// It has a carrier.
        carrier: bool,
    },
}

impl Event {
    /// The tunnel it happened on, if it did on one.
    #[must_use]
    pub fn tunnel(&self) -> Option<TunnelId> {
        match self {
            Self::Opened { .. } | Self::Closed { .. } => None,
            Self::Attached { tunnel, .. }
            | Self::Detached { tunnel, .. }
            | Self::Deleted { tunnel, .. }
            | Self::ToClient { tunnel, .. }
            | Self::FromClient { tunnel, .. }
            | Self::ToLink { tunnel, .. }
            | Self::Dropped { tunnel, .. }
            | Self::Link { tunnel, .. } => Some(*tunnel),
        }
    }
}

/// Why a datagram was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum DropReason {
    /// A filter of the client's dropped it.
    Filtered,
    /// The file's queue was full.
    QueueFull,
    /// The harness has not taken what the client wrote before.
    WriteBufferFull,
    /// All memory is in use that there is for datagrams, or for those of the user.
    Memory,
    /// A read had no room for the headers.
    ReadTooShort,
    /// A continuation of a write whose first part was taken already.
    Continuation,
    /// A peer or the kernel sent it, and the tunnel is down, has no carrier or no queue, or it is empty, too long, or cannot be
    /// cut; or the kernel behind a bridge refused what a client was told it had written.
    Refused,
    /// It is longer than the attached socket carries, or a host cannot do what its vnet header asks for.
    PeerLimit,
}

impl DropReason {
    /// The word that stands for it on the control socket.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Filtered => "filtered",
            Self::QueueFull => "queue-full",
            Self::WriteBufferFull => "write-buffer-full",
            Self::Memory => "memory",
            Self::ReadTooShort => "read-too-short",
            Self::Continuation => "continuation",
            Self::Refused => "refused",
            Self::PeerLimit => "peer-limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_know_their_tunnel_and_drops_have_a_word_each() {
        let (tunnel, name) = (TunnelId(3), Name::new(b"t"));
        let link = Event::Link { tunnel, name, up: true, carrier: true };
        assert_eq!(link.tunnel(), Some(tunnel));
        assert_eq!(Event::Closed { file: FileId(1) }.tunnel(), None);
        let reasons = [
            DropReason::Filtered,
            DropReason::QueueFull,
            DropReason::WriteBufferFull,
            DropReason::Memory,
            DropReason::ReadTooShort,
            DropReason::Continuation,
            DropReason::Refused,
            DropReason::PeerLimit,
        ];
        let words: alloc::collections::BTreeSet<&str> =
            reasons.iter().map(|reason| reason.word()).collect();
        assert_eq!(words.len(), reasons.len());
    }
}
