//! How much of everything there may be.

use super::{Bound, Resource};

/// How much of everything there may be.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Limits {
    /// Bytes of everything that grows. Beyond them datagrams are dropped, and open and TUNSETIFF get `ENOMEM`. What is kept of
    /// deleted tunnels makes room first.
    pub memory: Bound,
    /// Open files; the next open gets `EMFILE` for its user's limit, `ENFILE` for that of all.
    pub files: Bound,
    /// Tunnels, deleted ones with untaken datagrams included; the next TUNSETIFF gets `EMFILE` or `ENFILE`.
    pub tunnels: Bound,
    /// Deleted tunnels whose datagrams are kept; the oldest is given up for the next.
    pub gone_tunnels: Bound,
    /// Reads parked on one file; the next gets `ENOMEM`.
    pub parked_reads: usize,
    /// Reads parked on all files, likewise.
    pub all_parked_reads: Bound,
    /// Network namespaces from which files are open; the next open gets `EMFILE` or `ENFILE`.
    pub namespaces: Bound,
    /// The daemon's file descriptors for network devices and attached sockets; the next TUNSETIFF with a device gets `EMFILE` or
    /// `ENFILE`. Whoever opens them charges for them.
    pub descriptors: Bound,
    /// Connections to the control socket.
    pub connections: Bound,
    /// Bytes in one file's queue. Datagrams are limited too, as in the kernel: 500 on a tun, 1,000 on a tap.
    pub queue_bytes: usize,
    /// Datagrams that a tunnel keeps for the harness to take.
    pub written_datagrams: usize,
    /// Their bytes.
    pub written_bytes: usize,
    /// Datagrams of a bridged tunnel that the harness can take copies of: the latest.
    pub copied_datagrams: usize,
    /// Their bytes.
    pub copied_bytes: usize,
    /// Bytes of one injected datagram: the longest IP datagram with an Ethernet header and a VLAN tag.
    pub datagram: usize,
    /// Waits at one time.
    pub waits: Bound,
    /// Answers to ioctls that are stored in their callers' memory at one time.
    pub stored_answers: Bound,
}

impl Limits {
    /// The limits of a resource.
    pub(super) fn bound(&self, resource: Resource) -> Bound {
        match resource {
            Resource::Memory => self.memory,
            Resource::Files => self.files,
            Resource::Tunnels => self.tunnels,
            Resource::ParkedReads => self.all_parked_reads,
            Resource::Namespaces => self.namespaces,
            Resource::Descriptors => self.descriptors,
            Resource::Connections => self.connections,
            Resource::Waits => self.waits,
            Resource::StoredAnswers => self.stored_answers,
        }
    }
}

/// [`Limits::datagram`] of every daemon.
pub const MAX_DATAGRAM: usize = 65_535 + 18;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Bound::shared(256 << 20),
            files: Bound::shared(16_384),
            tunnels: Bound::shared(4_096),
            gone_tunnels: Bound::shared(64),
            parked_reads: 1_024,
            all_parked_reads: Bound::shared(65_536),
            namespaces: Bound::shared(1_024),
            descriptors: Bound::shared(16_384),
            connections: Bound { all: 160, user: 128 },
            queue_bytes: 80 << 20,
            written_datagrams: 4_096,
            written_bytes: 16 << 20,
            copied_datagrams: 1_024,
            copied_bytes: 4 << 20,
            datagram: MAX_DATAGRAM,
            waits: Bound { all: 2_048, user: 1_024 },
            stored_answers: Bound { all: 256, user: 16 },
        }
    }
}
